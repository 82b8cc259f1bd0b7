#include "report/sweep_view.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "options/option.h"
#include "report/json_values.h"
#include "report/svg_chart.h"

namespace elastify::report {
namespace {

using nlohmann::ordered_json;

/// Axes with more than one value; all of them if there is only one point.
std::vector<size_t> varying(const std::vector<SweepAxis>& grid) {
  std::vector<size_t> axes;
  for (size_t i = 0; i < grid.size(); ++i)
    if (grid[i].values.size() > 1) axes.push_back(i);
  for (size_t i = 0; axes.empty() && i < grid.size(); ++i) axes.push_back(i);
  return axes;
}

/// "metric" for "reorder.metric".
std::string short_name(const std::string& key) {
  return key.substr(key.find('.') + 1);
}

/// RFC 4180.
std::string csv_cell(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + "\"";
}

/// The true ratio of a level, and its excess loss over the full model.
struct Cost {
  double ratio, excess;
};

/// The excess loss of a row at `ratio`, interpolated between its levels: linear in the logarithm of the
/// excess between two levels and below the narrowest; proportional to the share of weights left out above the
/// widest or where there is one level. Rows reach a nominal level up to a grid step, and a hundredth of the
/// weights can make a tenth of the excess.
/// \param levels  by rising ratio, at least one
double excess_at(const std::vector<Cost>& levels, double ratio) {
  const Cost& widest = levels.back();
  if (ratio >= widest.ratio || levels.size() == 1)
    return widest.ratio < 1 ? widest.excess * (1 - ratio) / (1 - widest.ratio) : 0;
  size_t upper = 1;
  while (levels[upper].ratio < ratio) ++upper;
  const Cost &below = levels[upper - 1], &above = levels[upper];
  const double part = above.ratio > below.ratio ? (ratio - below.ratio) / (above.ratio - below.ratio) : 1;
  if (below.excess > 0 && above.excess > 0) return below.excess * std::pow(above.excess / below.excess, part);
  return below.excess + part * (above.excess - below.excess);
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double standard_deviation(const std::vector<double>& values) {
  double squares = 0;
  for (const double value : values) squares += (value - mean(values)) * (value - mean(values));
  return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

/// Accuracy per character, mean of the tasks.
double mean_accuracy(const ordered_json& tasks) {
  std::vector<double> values;
  for (const auto& [name, task] : tasks.items()) values.push_back(number_of(task.at("accuracy_norm")));
  return mean(values);
}

/// The measurements of a sweep with rows, by row and level, without the full model's. A row has several
/// values at a level where the grid has several points, most often seeds.
class RowComparison {
 public:
  explicit RowComparison(const ordered_json& report);

  /// Excess nats per token over the full model, mean over the grid with the standard deviation where it has
  /// several points, and as a share of the first row's at the same true ratio; then accuracies, if there are
  /// tasks.
  std::string text() const;

 private:
  using Values = std::map<std::string, std::vector<std::vector<double>>>;  ///< by row: [levels][points]

  /// \param cell  characters of a cell, without the standard deviation
  /// \param tail  (row, level) -> text behind the number
  template <typename Tail>
  std::string table(const Values& values, int cell, const Tail& tail) const;
  Cost mean_cost(const std::string& row, size_t level) const {
    return {mean(ratio_.at(row)[level]), mean(excess_.at(row)[level])};
  }

  std::vector<std::string> rows_;   ///< in the order of the points
  std::vector<double> levels_;      ///< nominal
  const ordered_json& full_tasks_;  ///< of the full model; empty without tasks
  Values excess_, accuracy_, ratio_;
  size_t width_ = 0;      ///< of the longest name
  bool several_ = false;  ///< points per row
};

RowComparison::RowComparison(const ordered_json& report) : full_tasks_(report.at("tasks")) {
  for (const auto& point : report.at("points")) {
    const std::string row = point.at("options").at(kRows);
    if (excess_.count(row) == 0) rows_.push_back(row);
    const size_t n_levels = point.at("levels").size() - 1;
    for (Values* values : {&excess_, &accuracy_, &ratio_}) (*values)[row].resize(n_levels);
    for (size_t i = 0; i < n_levels; ++i) {
      const ordered_json& level = point.at("levels")[i];
      excess_[row][i].push_back(number_of(level.at("excess_nll")));
      ratio_[row][i].push_back(level.at("true_ratio").get<double>());
      if (!full_tasks_.empty()) accuracy_[row][i].push_back(mean_accuracy(level.at("tasks")));
    }
  }
  const size_t n_levels = excess_.at(rows_[0]).size();
  for (size_t i = 0; i < n_levels; ++i)
    levels_.push_back(report.at("points")[0].at("levels")[i].at("level").get<double>());
  for (const std::string& row : rows_) width_ = std::max(width_, row.size());
  several_ = excess_.at(rows_[0])[0].size() > 1;
}

template <typename Tail>
std::string RowComparison::table(const Values& values, int cell, const Tail& tail) const {
  std::string text = fmt::format("{:<{}}", "", width_);
  for (const double level : levels_) text += fmt::format("  {:>{}}", level, several_ ? cell + 7 : cell);
  for (const std::string& row : rows_) {
    text += fmt::format("\n{:<{}}", row, width_);
    for (size_t i = 0; i < levels_.size(); ++i) {
      const std::vector<double>& points = values.at(row)[i];
      text += fmt::format("  {:>5.3f}{}{}", mean(points),
                          several_ ? fmt::format(" ±{:.3f}", standard_deviation(points)) : "", tail(row, i));
    }
  }
  return text + "\n";
}

std::string RowComparison::text() const {
  std::vector<Cost> first;
  for (size_t i = 0; i < levels_.size(); ++i) first.push_back(mean_cost(rows_[0], i));
  const std::string spread = several_ ? " (± standard deviation)" : "";
  std::string text =
      fmt::format("\nexcess nats per token{}, share of {}'s at the same true ratio\n", spread, rows_[0]);
  text += table(excess_, 11, [&](const std::string& row, size_t i) {
    const Cost cost = mean_cost(row, i);
    const double reference = excess_at(first, cost.ratio);
    return reference > 0 ? fmt::format(" {:>5.2f}", cost.excess / reference) : fmt::format(" {:>5}", "-");
  });
  if (full_tasks_.empty()) return text;
  std::vector<std::string> tasks;
  for (const auto& [name, task] : full_tasks_.items()) tasks.push_back(name);
  text += fmt::format("\naccuracy per character{}, mean of {}; full model: {:.3f}\n", spread,
                      fmt::join(tasks, ", "), mean_accuracy(full_tasks_));
  return text + table(accuracy_, 5, [](const std::string&, size_t) { return ""; });
}

std::vector<SweepAxis> axes_of(const ordered_json& report) {
  std::vector<SweepAxis> axes;
  for (const auto& axis : report.at("axes")) {
    axes.push_back({axis.at("key").get<std::string>(), {}});
    for (const auto& value : axis.at("values")) axes.back().values.push_back(options::text_of(value));
  }
  return axes;
}

std::string short_number(double value) {
  return value < 1e5 ? fmt::format("{:.2f}", value) : fmt::format("{:.3g}", value);
}

}  // namespace

std::string point_name(const std::vector<std::string>& values, const std::vector<SweepAxis>& axes) {
  std::vector<std::string> parts;
  for (const size_t i : varying(axes)) {
    const std::string& key = axes[i].key;
    const bool is_name =
        key == kRows || key == "reorder.metric" || key == "reorder.plan" || key == "reorder.compensate";
    parts.push_back(is_name ? values[i] : fmt::format("{} {}", short_name(key), values[i]));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string sweep_csv(const ordered_json& report) {
  constexpr const char* kColumns[] = {"level",         "true_ratio", "total_ratio", "perplexity",
                                      "bits_per_byte", "nll",        "excess_nll"};
  std::string text;
  for (const auto& axis : report.at("axes")) text += csv_cell(axis.at("key").get<std::string>()) + ",";
  text += fmt::format("{}", fmt::join(kColumns, ","));
  for (const auto& [task, ignored] : report.at("tasks").items()) text += "," + csv_cell(task);
  text += "\n";
  for (const auto& point : report.at("points")) {
    std::string cells;
    for (const auto& value : point.at("options")) cells += csv_cell(options::text_of(value)) + ",";
    for (const auto& level : point.at("levels")) {
      std::vector<std::string> values;
      for (const char* column : kColumns)
        values.push_back(fmt::format("{:.8g}", number_of(level.at(column))));
      for (const auto& [task, ignored] : report.at("tasks").items())
        values.push_back(fmt::format("{:.4f}", level.at("tasks").at(task).at("accuracy_norm").get<double>()));
      text += cells + fmt::format("{}\n", fmt::join(values, ","));
    }
  }
  return text;
}

std::string sweep_chart(const ordered_json& report) {
  const std::vector<SweepAxis> grid = axes_of(report);
  Chart picture;
  picture.title = fs::path(report.at("model").get<std::string>()).stem().string();
  picture.x_label = "true ratio: share of the decoder weights kept";
  picture.y_label = "perplexity on held-out text";
  picture.log_y = true;
  const std::vector<size_t> axes = varying(grid);
  std::vector<std::string> colours;
  std::vector<std::vector<std::string>> dashes;
  const auto index = [](auto& known, const auto& value) {
    const auto found = std::find(known.begin(), known.end(), value);
    if (found != known.end()) return static_cast<int>(found - known.begin());
    known.push_back(value);
    return static_cast<int>(known.size()) - 1;
  };
  for (const auto& point : report.at("points")) {
    ChartSeries line;
    line.name = point.at("name");
    const auto value = [&](size_t axis) { return options::text_of(point.at("options").at(grid[axis].key)); };
    std::vector<std::string> others;
    for (size_t i = 1; i < axes.size(); ++i) others.push_back(value(axes[i]));
    line.colour = palette_colour(static_cast<size_t>(index(colours, value(axes[0]))));
    line.dash = index(dashes, others);
    for (const auto& level : point.at("levels")) {
      line.x.push_back(level.at("true_ratio"));
      line.y.push_back(number_of(level.at("perplexity")));
    }
    picture.series.push_back(std::move(line));
  }
  return to_svg(picture);
}

std::string sweep_table(const ordered_json& report) {
  const std::vector<SweepAxis> grid = axes_of(report);
  const std::vector<size_t> axes = varying(grid);
  std::vector<size_t> widths;
  std::string text;
  for (const size_t i : axes) {
    size_t& width = widths.emplace_back(short_name(grid[i].key).size());
    for (const auto& value : grid[i].values) width = std::max(width, value.size());
    text += fmt::format("{:<{}}  ", short_name(grid[i].key), width);
  }
  const ordered_json& points = report.at("points");
  std::vector<double> best;
  for (size_t i = 0; i < points.at(0).at("levels").size(); ++i) {
    text += fmt::format("{:>9} ", points.at(0).at("levels").at(i).at("level").get<double>());
    double& lowest = best.emplace_back(std::numeric_limits<double>::infinity());
    for (const auto& point : points) {
      const double value = number_of(point.at("levels").at(i).at("perplexity"));
      if (value < lowest) lowest = value;
    }
  }
  text.back() = '\n';
  const bool marks = points.size() > 1;
  for (const auto& point : points) {
    for (size_t i = 0; i < axes.size(); ++i)
      text += fmt::format("{:<{}}  ", options::text_of(point.at("options").at(grid[axes[i]].key)), widths[i]);
    const ordered_json& levels = point.at("levels");
    for (size_t i = 0; i < levels.size(); ++i) {
      const double value = number_of(levels.at(i).at("perplexity"));
      const bool marked = marks && value == best[i] && levels.at(i).at("level").get<double>() < 1;
      text += fmt::format("{:>9}{}", short_number(value), marked ? '*' : ' ');
    }
    while (text.back() == ' ') text.pop_back();
    text += '\n';
  }
  text += fmt::format("perplexity over {} tokens{}\n", report.at("tokens").get<int64_t>(),
                      marks ? "; * lowest of the level" : "");
  if (grid[0].key == kRows && points.at(0).at("levels").size() > 1) text += RowComparison(report).text();
  return text;
}

}  // namespace elastify::report
