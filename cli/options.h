#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/commands.h"

namespace elastify::cli {

inline constexpr const char* kModelHelp = "Hugging Face directory, .gguf or llama2.c .bin";

/// Adds the options of the stages that `wanted` accepts as flags.
void add_flags(CLI::App& command, Invocation& call,
               const std::function<bool(const options::Option&)>& wanted);
/// Adds all options of a section but these, by key.
void add_section(CLI::App& command, Invocation& call, std::string_view section,
                 const std::vector<std::string>& but = {});
/// Adds the flags that every command has.
void add_common(CLI::App& command, Invocation& call);

/// Checks the text of a level.
/// \returns the error message; empty if the text is a number above 0, up to 1
std::string level_error(const std::string& text);

/// Options of the whole run that were given as flags, as overrides of a YAML file: "device=cuda".
std::vector<std::string> overrides_of(const Invocation& call);

}  // namespace elastify::cli
