#include <CLI/CLI.hpp>

#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/terminal.h"
#include "base/version.h"
#include "cli/arguments.h"
#include "cli/commands.h"
#include "cli/options.h"

namespace elastify::cli {

char** arguments = nullptr;

namespace {

/// Names of files need not be UTF-8, JSON has to be.
std::string text_of(const nlohmann::ordered_json& json) {
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

enum ExitStatus { kDone = 0, kFailed = 1, kBadUsage = 2, kInterrupted = 130 };

/// \param json  also print the error as an object on standard output
int report_error(const std::string& verb, const Error& error, bool json = false) {
  if (json) {
    nlohmann::ordered_json object{{"error", error.what()}};
    if (!error.hint().empty()) object["hint"] = error.hint();
    std::cout << text_of(object) << std::flush;
  }
  std::fflush(stdout);
  write_stderr(fmt::format("elastify{}{}: error: {}\n", verb.empty() ? "" : " ", verb, error.what()));
  if (!error.hint().empty()) write_stderr(fmt::format("  hint: {}\n", error.hint()));
  if (dynamic_cast<const Interrupted*>(&error) != nullptr) return kInterrupted;
  return dynamic_cast<const UsageError*>(&error) != nullptr ? kBadUsage : kFailed;
}

/// \returns exit status; -1 if help was printed
int parse(CLI::App& app, int argc, char** argv, const std::string& verb) {
  try {
    app.parse(argc, argv);
    return kDone;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {
      app.exit(error);
      return -1;  // help was printed
    }
    const std::string command = verb.empty() ? "elastify" : "elastify " + verb;
    write_stderr(fmt::format("{0}: error: {1}\n  hint: see `{0} --help`\n", command, error.what()));
    return kBadUsage;
  } catch (const Error& error) {  // an option refused its value
    return report_error(verb, error);
  }
}

int run_action(const Invocation& call, const std::string& verb) {
  log::set_level(call.quiet ? log::Level::kQuiet : call.verbose ? log::Level::kVerbose : log::Level::kNormal);
  log::set_prefix(verb);
  install_interrupt_handler();
  try {
    const Report report = call.action();
    if (call.json || !call.quiet) std::cout << (call.json ? text_of(report.json) : report.text) << std::flush;
    if (!std::cout) throw Error("standard output: cannot write");
    return report.ok ? kDone : kFailed;
  } catch (const Error& error) {
    return report_error(verb, error, call.json);
  } catch (const std::bad_alloc&) {
    return report_error(verb, Error("out of memory", "a smaller --batch or --seq needs less"), call.json);
  } catch (const std::exception& error) {
    return report_error(verb, Error(error.what()), call.json);
  }
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

  std::vector<std::unique_ptr<Invocation>> calls;
  std::string chosen;
  for (const Verb& verb : verbs()) {
    CLI::App* command = app.add_subcommand(std::string(verb.name), std::string(verb.summary));
    calls.push_back(std::make_unique<Invocation>());
    verb.add(*command, *calls.back());
    add_common(*command, *calls.back());  // last in the help
    if (argc > 1 && verb.name == argv[1]) chosen = verb.name;
  }
  if (argc > 1 && argv[1][0] != '-' && chosen.empty())
    return report_error("", UsageError(fmt::format("there is no command '{}'", argv[1]),
                                       "`elastify --help` lists the commands"));
  if (const int status = parse(app, argc, argv, chosen); status != kDone) return std::max(status, 0);
  const std::string verb = app.get_subcommands().front()->get_name();
  for (size_t i = 0; i < calls.size(); ++i)
    if (verbs()[i].name == verb) return run_action(*calls[i], verb);
  return kBadUsage;
}

}  // namespace
}  // namespace elastify::cli

int main(int argc, char** argv) {
  return elastify::cli::run_main(argc, argv);
}
