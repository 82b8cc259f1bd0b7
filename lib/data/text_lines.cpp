#include "data/text_lines.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "data/utf8.h"

namespace elastify {
namespace {

/// Code that reads a parsed value recurses into it, so its depth must have a limit.
constexpr int kMaxDepth = 256;

bool nests_too_deep(std::string_view json) {
  int depth = 0;
  bool in_text = false;
  for (size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (in_text) {
      if (c == '\\') ++i;
      if (c == '"') in_text = false;
    } else if (c == '"') {
      in_text = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

}  // namespace

std::string read_utf8(const fs::path& file) {
  std::string text = read_text(file);
  if (const size_t n_valid = valid_utf8_prefix(text); n_valid < text.size()) {
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<ptrdiff_t>(n_valid), '\n');
    throw Error(fmt::format("{}: line {}: not UTF-8: byte {:#04x}", file.string(), line,
                            static_cast<unsigned char>(text[n_valid])),
                "convert it, for example with iconv -t utf-8");
  }
  if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
  if (text.find('\r') != std::string::npos) {
    size_t end = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\r' || i + 1 == text.size() || text[i + 1] != '\n') text[end++] = text[i];
    }
    text.resize(end);
  }
  return text;
}

nlohmann::json parse_json_text(const std::string& place, std::string_view text) {
  if (nests_too_deep(text)) fail("{}: not valid JSON: nested more than {} deep", place, kMaxDepth);
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    // The message looks like "[json.exception.parse_error.101] parse error at line 1, column 2: ...".
    const std::string_view message = error.what();
    const size_t end_of_class = message.find("] ");
    fail("{}: not valid JSON: {}", place,
         end_of_class == std::string_view::npos ? message : message.substr(end_of_class + 2));
  }
}

void for_each_json_line(const fs::path& file, std::string_view text,
                        const std::function<void(const nlohmann::json&)>& use) {
  int64_t n = 0;
  while (!text.empty()) {
    ++n;
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string place = fmt::format("{}: line {}", file.string(), n);
    const nlohmann::json value = parse_json_text(place, line);
    with_context(place, [&] { use(value); });
  }
}

}  // namespace elastify
