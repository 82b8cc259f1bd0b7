#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "pipeline/config.h"
#include "pipeline/verify.h"
#include "plan/cost_curves.h"
#include "report/report.h"

namespace CLI {
class App;
}

namespace elastify::cli {

/// Flags that every command has.
struct Globals {
  bool json = false, force = false, quiet = false, verbose = false;
  int threads = 0;
  nn::DecoderOptions compute;
  int64_t seed = 0;
  fs::path tokenizer;
};

/// Every command ends with one: `text` is printed, or with --json `json`. `ok` false: exit status 1.
using report::Report;

/// The command that the command line asks for; set while it is parsed, run afterwards.
using Action = std::function<Report()>;

// One per subcommand: declares its flags and sets `action` when it is chosen.
void add_inspect(CLI::App& app, const Globals& globals, Action& action);
void add_profile(CLI::App& app, const Globals& globals, Action& action);
void add_reorder(CLI::App& app, const Globals& globals, Action& action);
void add_plan(CLI::App& app, const Globals& globals, Action& action);
void add_export(CLI::App& app, const Globals& globals, Action& action);
void add_slice(CLI::App& app, const Globals& globals, Action& action);
void add_verify(CLI::App& app, const Globals& globals, Action& action);
void add_eval(CLI::App& app, const Globals& globals, Action& action);
void add_install_check(CLI::App& app, const Globals& globals, Action& action);
void add_run(CLI::App& app, const Globals& globals, Action& action);
void add_sweep(CLI::App& app, const Globals& globals, Action& action);

struct ProfileCommand {
  fs::path model, output;
  profile::ProfileOptions options;
  profile::WorkOptions work;
  bool resume = false;
};
struct ReorderCommand {
  std::string compensation = "none";  ///< into options.repair
  fs::path model, profile, widths, output;
  profile::ProfileOptions profiling;
  pipeline::ReorderSection options;
};
struct PlanCommand {
  fs::path model, profile, output, plot;
  plan::PlanOptions options;
  profile::ProfileOptions text;  ///< what losses are measured on
  bool explain = false;
};
struct ExportCommand {
  fs::path reordered, output, imatrix;
  exporter::ExportOptions options;
  bool hf = false;  ///< Hugging Face directories; no options.types: as the model is stored
};
struct VerifyCommand {
  fs::path path, against;
  pipeline::VerifyOptions options;
};
struct EvalCommand {
  fs::path path, task;
  std::optional<double> level;
  bool repairs = true;  ///< apply those of the level
  pipeline::EvalOptions options;
};
struct RunCommand {
  fs::path config;
  std::vector<std::string> overrides;
  bool resume = true;  ///< what is up to date is never done again, unless --force
};
using SweepCommand = RunCommand;

// The commands that need LibTorch, whose start-up alone takes most of a second. `elastify` itself is linked
// without it: there, each of these replaces the process by `elastify-torch` with the same arguments
// (hand_over.cpp); in elastify-torch they do the work (torch/).
Report run_system(const Globals& globals);
Report run_profile(const Globals& globals, const ProfileCommand& command);
Report run_measured_plan(const Globals& globals, const PlanCommand& command);
Report run_reorder(const Globals& globals, const ReorderCommand& command);
Report run_verify(const Globals& globals, const VerifyCommand& command);
Report run_eval(const Globals& globals, const EvalCommand& command);
Report run_run(const Globals& globals, const RunCommand& command);
Report run_sweep(const Globals& globals, const SweepCommand& command);

// Need no LibTorch. (export.cpp, export_hf.cpp)
Report run_export(const Globals& globals, const ExportCommand& command);
Report run_export_hf(const Globals& globals, const ExportCommand& command);

/// Writes a plan, its plot if one is asked for, and says what it is.
/// \param profile, curves  for --explain; may be null
Report write_plan(const PlanCommand& command, const ElasticPlan& plan, const ModelSpec& spec,
                  const Profile* profile, const plan::CostCurves* curves);

/// The arguments the process was started with, for hand_over.cpp.
extern char** arguments;

}  // namespace elastify::cli
