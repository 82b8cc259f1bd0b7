#pragma once

#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "options/codec.h"
#include "options/result.h"

// An option of a stage is declared once, by a function `declare(Options&, StageOptions&)` beside the stage's
// options struct. The flag and its help, the key in YAML and of --set, the field in JSON, the range that all
// of them enforce, the keys of kept results and the table in the docs follow from that declaration.

namespace elastify::options {

/// Which values a number may have.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool is_share = false;
  std::string text() const;  ///< "at least 1", "a share from 0 to 1"; empty: any
};

/// One option, bound to a field.
class Option {
 public:
  // Said by the declaration, after Options::add().
  Option& at_least(double low);
  Option& between(double low, double high);
  Option& share();                        ///< a number from 0 to 1
  Option& affects(Result results);        ///< instead of what the section affects
  Option& group(std::string_view title);  ///< heading in the help of commands with many options
  Option& alias(std::string_view name);   ///< a second name on the command line: "task" for "tasks"

  const std::string& name() const { return name_; }  ///< "fit_tokens"
  std::string key() const;                           ///< "reorder.fit_tokens": in YAML and of --set
  std::string flags() const;                         ///< "--fit-tokens"; "--depth,!--no-depth" for a flag
  const std::string& section() const { return section_; }
  const std::string& help() const { return help_; }
  const std::string& heading() const { return group_; }
  const std::string& type() const { return type_; }
  const std::vector<Choice>& choices() const { return choices_; }
  const Range& range() const { return *range_; }
  Result results() const { return affects_; }
  bool is_flag() const { return is_flag_; }
  bool takes_list() const { return takes_list_; }

  nlohmann::ordered_json value() const { return value_(); }
  std::string value_text() const;  ///< for people: "0.2", "0.5,0.7"
  /// Reads a value into the field.
  /// \throws UsageError  naming place and key: not of the option's type, out of its range
  void set(const Given& given);

 private:
  friend class Options;
  std::string section_, name_, help_, group_, alias_, type_;
  std::vector<Choice> choices_;
  std::shared_ptr<Range> range_ = std::make_shared<Range>();
  Result affects_ = Result::kNone;
  bool is_flag_ = false, takes_list_ = false;
  std::function<void(const Given&)> set_;
  std::function<nlohmann::ordered_json()> value_;
};

/// Where the value of an option comes from, by its key. An option that is not listed has its default.
using Sources = std::map<std::string, std::string>;

/// The options of one or several stages, bound to structs of options that outlive this list.
class Options {
 public:
  Options() = default;
  Options(const Options&) = delete;
  Options& operator=(const Options&) = delete;

  template <typename T>
  Option& add(std::string_view name, T& field, std::string_view help) {
    return add(name, field, help, codec_of(static_cast<const T*>(nullptr)));
  }
  template <typename T>
  Option& add(std::string_view name, T& field, std::string_view help, Codec<T> codec) {
    Option& option = append(name, help);
    option.type_ = codec.type;
    option.choices_ = codec.choices;
    option.takes_list_ = codec.takes_list;
    option.is_flag_ = std::is_same_v<T, bool> || std::is_same_v<T, std::optional<bool>>;
    option.set_ = [&field, parse = codec.parse, range = option.range_](const Given& given) {
      T value = parse(given);
      if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>)
        require_in(*range, static_cast<double>(value), given);
      field = std::move(value);
    };
    option.value_ = [&field, write = codec.write] { return write(field); };
    return option;
  }
  /// Adds the options of a struct that has a function `declare(Options&, Struct&)` under a section.
  template <typename Struct>
  void section(std::string_view name, Result results, Struct& fields) {
    section_ = name;
    results_ = results;
    declare(*this, fields);
    section_.clear();
    results_ = Result::kNone;
  }

  std::deque<Option>& all() { return all_; }
  const std::deque<Option>& all() const { return all_; }
  std::vector<std::string> sections() const;
  /// Null if there is none.
  Option* find(std::string_view key);
  /// Sets a value and notes its source.
  /// \param source  empty: the value's place
  /// \throws UsageError  for an unknown key (with the nearest known one), and as Option::set()
  void set(const std::string& key, const Given& given, Sources& sources, std::string_view source = {});

  /// Every field, in sections, in the spelling of YAML.
  nlohmann::ordered_json json() const;
  /// The fields that change one of these results.
  nlohmann::ordered_json json(Result results) const;

 private:
  Option& append(std::string_view name, std::string_view help);
  static void require_in(const Range& range, double value, const Given& given);

  std::deque<Option> all_;  // references to options stay valid
  std::string section_;
  Result results_ = Result::kNone;
};

/// A value of JSON for people and tables: "taylor", "0.2", "a.txt+b.txt".
std::string text_of(const nlohmann::ordered_json& value);
/// The way out where a name is not known.
/// \param known  not empty
std::string nearest_of(const std::vector<std::string>& known, const std::string& name);

}  // namespace elastify::options
