#include "model/families/families.h"

#include <fmt/ranges.h>

#include "base/error.h"

namespace elastify {

std::span<const Family> families() {
  static const std::vector<Family> all{llama_family(), mistral_family(), qwen2_family(), qwen3_family()};
  return all;
}

const Family& family_named(std::string_view name) {
  std::vector<std::string_view> known;
  for (const Family& family : families()) {
    if (name == family.name) return family;
    known.push_back(family.name);
  }
  fail("model family '{}' is not supported; supported are {}", name, fmt::join(known, ", "));
}

}  // namespace elastify
