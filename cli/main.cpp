#include <CLI/CLI.hpp>

#include <cstdio>
#include <iostream>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/version.h"
#include "cli/commands.h"

namespace elastify::cli {

char** arguments = nullptr;

namespace {

enum ExitStatus { kDone = 0, kFailed = 1, kBadUsage = 2 };

void add_globals(CLI::App& command, Globals& globals) {
  auto* group = command.add_option_group("common");
  group->add_flag("--json", globals.json, "print one JSON object on standard output");
  group->add_flag("--force", globals.force, "replace what exists");
  group->add_flag("-q,--quiet", globals.quiet, "warnings and errors only");
  group->add_flag("-v,--verbose", globals.verbose, "say more");
  group->add_option("--threads", globals.threads, "threads; 0: all cores")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  group->add_option("--device", globals.compute.device, "cpu, cuda or cuda:<i>")->capture_default_str();
  group->add_option("--dtype", globals.compute.dtype, "type to compute in: f32, bf16, f16")
      ->capture_default_str();
  group->add_option("--seed", globals.seed, "of everything random")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  group->add_option("--tokenizer", globals.tokenizer,
                    "tokenizer.json, .model, .bin, .gguf or a directory with one");
}

bool has_command(const CLI::App& app, const std::string& name) {
  const auto commands =
      app.get_subcommands([&](const CLI::App* command) { return command->get_name() == name; });
  return !commands.empty();
}

int report_error(const std::string& verb, const Error& error) {
  std::fflush(stdout);
  fmt::print(stderr, "elastify{}{}: error: {}\n", verb.empty() ? "" : " ", verb, error.what());
  if (!error.hint().empty()) fmt::print(stderr, "  hint: {}\n", error.hint());
  if (dynamic_cast<const Interrupted*>(&error) != nullptr) return 130;
  return dynamic_cast<const UsageError*>(&error) != nullptr ? kBadUsage : kFailed;
}

int run_main(int argc, char** argv) {
  arguments = argv;
  CLI::App app{
      "Makes one pretrained language model elastic: orders its heads and neurons by importance, so that "
      "every smaller\n"
      "model is a prefix of the full one, and writes GGUF files that stock runtimes load.",
      "elastify"};
  app.set_version_flag("--version", std::string(kVersion));
  app.require_subcommand(1);
  app.failure_message(CLI::FailureMessage::help);
  app.footer("elastify COMMAND --help explains a command and shows an example.");

  Globals globals;
  Action action;
  for (auto* add : {add_inspect, add_profile, add_reorder, add_plan, add_export, add_slice, add_verify,
                    add_eval, add_install_check, add_run, add_sweep})
    add(app, globals, action);
  for (CLI::App* command : app.get_subcommands({})) add_globals(*command, globals);

  std::string verb;
  if (argc > 1 && argv[1][0] != '-' && !has_command(app, argv[1]))
    return report_error("", UsageError(fmt::format("there is no command '{}'", argv[1]),
                                       "`elastify --help` lists the commands"));
  try {
    app.parse(argc, argv);
    verb = app.get_subcommands().front()->get_name();
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    const auto chosen = app.get_subcommands();
    fmt::print(stderr, "elastify{}{}: error: {}\n  hint: see `elastify{}{} --help`\n",
               chosen.empty() ? "" : " ", chosen.empty() ? "" : chosen.front()->get_name(), error.what(),
               chosen.empty() ? "" : " ", chosen.empty() ? "" : chosen.front()->get_name());
    return kBadUsage;
  } catch (const Error& error) {  // out of a validator
    return report_error("", error);
  }

  log::set_level(globals.quiet     ? log::Level::kQuiet
                 : globals.verbose ? log::Level::kVerbose
                                   : log::Level::kNormal);
  log::set_prefix(verb);
  install_interrupt_handler();
  try {
    const Report report = action();
    std::cout << (globals.json ? report.json.dump(2) + "\n" : report.text) << std::flush;
    if (!std::cout) throw Error("standard output: cannot write");
    return report.ok ? kDone : kFailed;
  } catch (const Error& error) {
    return report_error(verb, error);
  } catch (const std::bad_alloc&) {
    return report_error(verb, Error("out of memory", "a smaller --batch or --seq needs less"));
  } catch (const std::exception& error) {
    return report_error(verb, Error(error.what()));
  }
}

}  // namespace
}  // namespace elastify::cli

int main(int argc, char** argv) {
  return elastify::cli::run_main(argc, argv);
}
