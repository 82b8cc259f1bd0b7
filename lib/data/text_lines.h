#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "base/file.h"

namespace elastify {

/// Reads a text file. Line ends become "\n" and a byte order mark is dropped.
/// \throws Error  naming file and line of the first byte that is not UTF-8
std::string read_utf8(const fs::path& file);

/// \throws Error  `place: not valid JSON: ...`
nlohmann::json parse_json_text(const std::string& place, std::string_view text);

/// Calls `use` with the value of every line that is not blank. An Error of `use` gets `file: line n: ` in
/// front.
/// \throws Error  naming file and line of text that is not JSON
void for_each_json_line(const fs::path& file, std::string_view text,
                        const std::function<void(const nlohmann::json&)>& use);

}  // namespace elastify
