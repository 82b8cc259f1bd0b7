#include "data/task.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "data/text_lines.h"

namespace elastify {
namespace {

using nlohmann::json;

std::string text_of(const json& item, const char* key) {
  const auto found = item.find(key);
  if (found == item.end()) fail("{}: missing", key);
  if (!found->is_string()) fail("{}: expected a string, got {}", key, found->type_name());
  return found->get<std::string>();
}

std::vector<std::string> texts_of(const json& item, const char* key) {
  const json& list = item.at(key);
  if (!list.is_array() || list.size() < 2) fail("{}: expected an array of at least 2 strings", key);
  std::vector<std::string> texts;
  for (const json& text : list) {
    if (!text.is_string()) fail("{}[{}]: expected a string, got {}", key, texts.size(), text.type_name());
    texts.push_back(text.get<std::string>());
  }
  return texts;
}

int64_t gold_of(const json& item, size_t n_choices) {
  const auto found = item.find("gold");
  if (found == item.end()) fail("gold: missing");
  if (!found->is_number_integer()) fail("gold: expected an integer, got {}", found->type_name());
  const auto gold = found->get<int64_t>();
  if (gold < 0 || gold >= static_cast<int64_t>(n_choices))
    fail("gold: expected the number of a choice from 0 to {}, got {}", n_choices - 1, gold);
  return gold;
}

TaskItem parse_item(const json& item) {
  if (!item.is_object()) fail("expected a JSON object, got {}", item.type_name());
  TaskItem result;
  if (item.contains("choices")) {
    result.continuations = texts_of(item, "choices");
    result.contexts.assign(result.continuations.size(), text_of(item, "query"));
    result.gold = gold_of(item, result.continuations.size());
  } else if (item.contains("context_options")) {
    result.contexts = texts_of(item, "context_options");
    result.continuations.assign(result.contexts.size(), text_of(item, "continuation"));
    result.gold = gold_of(item, result.contexts.size());
  } else if (item.contains("context")) {
    result.contexts = {text_of(item, "context")};
    result.continuations = {text_of(item, "continuation")};
  } else {
    throw Error("not a task item",
                "expected query/choices/gold, context_options/continuation/gold or context/continuation");
  }
  for (size_t i = 0; i < result.continuations.size(); ++i) {
    if (result.continuations[i].empty()) fail("the continuation of choice {} is empty", i);
  }
  return result;
}

}  // namespace

std::vector<TaskItem> load_task(const fs::path& file) {
  std::vector<TaskItem> items;
  for_each_json_line(file, read_utf8(file), [&](const json& item) { items.push_back(parse_item(item)); });
  if (items.empty()) fail("{}: holds no items", file.string());
  return items;
}

}  // namespace elastify
