#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/file.h"
#include "pipeline/config.h"
#include "report/report.h"

namespace CLI {
class App;
}

namespace elastify::cli {

using report::Report;

/// The state of one command while it is parsed: the flags of all commands, and the options of the stages,
/// bound to `config`.
struct Invocation {
  Invocation() { declare(options, config); }

  bool json = false, force = false, quiet = false, verbose = false;
  pipeline::RunConfig config;
  options::Options options;
  /// The work that the command line asks for. It is set during parsing and run afterwards.
  std::function<Report()> action;

  /// Whether the user gave the option with this key.
  bool given(const std::string& key) const { return config.sources.contains(key); }
};

/// A command. `add` declares its arguments and flags, and sets the action if the command is chosen.
struct Verb {
  std::string_view name, summary;
  void (*add)(CLI::App& command, Invocation& call);
};
/// All commands, in the order of their work.
const std::vector<Verb>& verbs();

// One per file cmd_<verb>.cpp.
void add_inspect(CLI::App& command, Invocation& call);
void add_profile(CLI::App& command, Invocation& call);
void add_reorder(CLI::App& command, Invocation& call);
void add_plan(CLI::App& command, Invocation& call);
void add_export(CLI::App& command, Invocation& call);
void add_slice(CLI::App& command, Invocation& call);
void add_verify(CLI::App& command, Invocation& call);
void add_eval(CLI::App& command, Invocation& call);
void add_install_check(CLI::App& command, Invocation& call);
void add_run(CLI::App& command, Invocation& call);
void add_sweep(CLI::App& command, Invocation& call);
void add_options(CLI::App& command, Invocation& call);

// Arguments of commands, without the options of the stages.
struct SystemCommand {};
struct ProfileCommand {
  fs::path model, output;
  bool resume = false;
};
struct ReorderCommand {
  fs::path model, profile, widths, output;
};
struct PlanCommand {
  fs::path model, profile, output, plot;
  bool explain = false;
};
struct VerifyCommand {
  fs::path path, against;
};
struct EvalCommand {
  fs::path path;
  std::optional<double> level;
  bool repairs = true;  ///< apply the level's repairs
};
struct RunCommand {
  fs::path config;
  std::vector<std::string> overrides;
};
struct SweepCommand : RunCommand {};

/// Every command that needs LibTorch.
using TorchCommand = std::variant<SystemCommand, ProfileCommand, ReorderCommand, PlanCommand, VerifyCommand,
                                  EvalCommand, RunCommand, SweepCommand>;

/// Runs work that needs LibTorch. Loading LibTorch takes most of a second, so `elastify` is linked without it
/// and hands such work over to `elastify-torch` (hand_over.cpp), which has the work of each command in
/// torch/<verb>.cpp.
Report with_torch(const Invocation& call, const TorchCommand& command);

}  // namespace elastify::cli
