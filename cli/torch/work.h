#pragma once

#include "cli/commands.h"

namespace elastify::cli {

// The work of each command, in the file of its name.
Report work(const Invocation& call, const SystemCommand& command);
Report work(const Invocation& call, const ProfileCommand& command);
Report work(const Invocation& call, const ReorderCommand& command);
Report work(const Invocation& call, const PlanCommand& command);
Report work(const Invocation& call, const VerifyCommand& command);
Report work(const Invocation& call, const EvalCommand& command);
Report work(const Invocation& call, const RunCommand& command);
Report work(const Invocation& call, const SweepCommand& command);

}  // namespace elastify::cli
