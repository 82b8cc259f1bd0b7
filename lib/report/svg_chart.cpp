#include "report/svg_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>

namespace elastify::report {
namespace {

constexpr double kWidth = 720, kHeight = 440, kLeft = 80, kRight = 20, kTop = 50, kBottom = 60;
constexpr double kPanelWidth = 560, kPanelHeight = 360, kHeader = 50;
constexpr double kLegendRow = 20, kLegendLine = 34, kLetter = 7.2;
constexpr size_t kNamesInPlot = 3;  ///< with more names, the legend stands beside the plot
constexpr std::array<const char*, 10> kColours{"#1f6fb4", "#c8501e", "#2e8b57", "#7b4fa3", "#8a6d1d",
                                               "#444444", "#d6338a", "#19a0b4", "#a01c2c", "#86a81f"};
constexpr std::array<const char*, 6> kDashes{"", "7 4", "2 3", "10 3 2 3", "14 5", "5 2"};

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '&')
      out += "&amp;";
    else
      out += c;
  }
  return out;
}

/// "400", "20k", "1M".
std::string short_tick(double value) {
  if (value >= 1e9) return fmt::format("{:g}G", value / 1e9);
  if (value >= 1e6) return fmt::format("{:g}M", value / 1e6);
  if (value >= 1e4) return fmt::format("{:g}k", value / 1e3);
  return fmt::format("{:g}", value);
}

/// An axis: it maps data values to pixels and chooses round tick values.
struct Axis {
  double low, high, from, to;
  bool log;
  bool whole = false;

  double at(double value) const {
    const double a = log ? std::log10(low) : low, b = log ? std::log10(high) : high;
    return from + (to - from) * ((log ? std::log10(value) : value) - a) / (b - a);
  }
  std::vector<double> ticks() const {
    std::vector<double> values;
    if (log) {
      const bool wide = high / low > 1000;
      for (double decade = std::pow(10, std::floor(std::log10(low))); decade <= high; decade *= 10)
        for (const double step : {1.0, 2.0, 5.0})
          if (const double value = decade * step; (step == 1 || !wide) && value >= low && value <= high)
            values.push_back(value);
      return values;
    }
    const double rough = (high - low) / 6, power = std::pow(10, std::floor(std::log10(rough)));
    double step = power * (rough / power > 5 ? 10 : rough / power > 2 ? 5 : rough / power > 1 ? 2 : 1);
    if (whole) step = std::max(step, 1.0);
    // Multiples of the step, because the rounding of running sums would show at zero. Adding 0 turns -0 into
    // 0.
    for (double k = std::ceil(low / step); k * step <= high + step * 1e-9; ++k)
      values.push_back(k * step + 0.0);
    return values;
  }
};

Axis fit(const std::vector<ChartSeries>& series, bool of_x, bool log, double from, double to) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const auto& line : series)
    for (const double value : of_x ? line.x : line.y) {
      if (!std::isfinite(value) || (log && value <= 0)) continue;
      low = std::min(low, value);
      high = std::max(high, value);
    }
  if (!(low <= high)) low = log ? 1 : 0, high = log ? 10 : 1;
  if (log) return {low / 1.1, high * 1.1, from, to, true};
  const double margin = high > low ? 0.04 * (high - low) : std::max(std::abs(low), 1.0) * 0.1;
  return {low - margin, high + margin, from, to, false};
}

std::string dashes(const ChartSeries& line) {
  const std::string pattern = kDashes[static_cast<size_t>(line.dash) % kDashes.size()];
  return pattern.empty() ? pattern : fmt::format(" stroke-dasharray=\"{}\"", pattern);
}

std::string legend_row(const ChartSeries& line, const std::string& colour, double x, double y) {
  return fmt::format(
      "<path d=\"M{:.0f} {:.0f}h{}\" stroke=\"{}\" stroke-width=\"3\"{}/><text x=\"{:.0f}\" "
      "y=\"{:.0f}\">{}</text>\n",
      x, y, kLegendLine - 6, colour, dashes(line), x + kLegendLine, y + 4, escaped(line.name));
}

struct Names {
  size_t n = 0, longest = 0;
  double width() const { return kLegendLine + 20 + kLetter * static_cast<double>(longest); }
  double height() const { return kLegendRow * static_cast<double>(n); }
};
Names names_of(const Chart& chart) {
  Names names;
  for (const ChartSeries& line : chart.series) {
    if (line.name.empty()) continue;
    ++names.n;
    names.longest = std::max(names.longest, line.name.size());
  }
  return names;
}

/// A chart without the file around it, in a frame of this size.
/// \param beside  the legend stands to the right of the frame instead of in it
std::string body(const Chart& chart, double width, double height, bool beside) {
  Axis x = fit(chart.series, true, false, kLeft, width - kRight);
  x.whole = chart.whole_x;
  const Axis y = fit(chart.series, false, chart.log_y, height - kBottom, kTop);
  std::string svg =
      fmt::format("<text x=\"{}\" y=\"28\" font-size=\"16\">{}</text>\n", kLeft, escaped(chart.title));
  for (const double tick : x.ticks())
    svg += fmt::format(
        "<path d=\"M{0:.1f} {1}V{2}\" stroke=\"#e4e4e4\"/><text x=\"{0:.1f}\" y=\"{3}\" "
        "text-anchor=\"middle\">{4:g}</text>\n",
        x.at(tick), kTop, height - kBottom, height - kBottom + 18, tick);
  for (const double tick : y.ticks())
    svg += fmt::format(
        "<path d=\"M{1} {0:.1f}H{2}\" stroke=\"#e4e4e4\"/><text x=\"{3}\" y=\"{4:.1f}\" "
        "text-anchor=\"end\">{5}</text>\n",
        y.at(tick), kLeft, width - kRight, kLeft - 8, y.at(tick) + 4, short_tick(tick));
  svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                     (kLeft + width - kRight) / 2, height - 16, escaped(chart.x_label));
  svg += fmt::format("<text transform=\"translate(20 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
                     (kTop + height - kBottom) / 2, escaped(chart.y_label));

  const Names names = names_of(chart);
  size_t next_colour = 0;
  const double legend_x = beside ? width - kRight + 10 : width - kRight - names.width() + 10;
  double row = chart.legend_below && !beside ? height - kBottom - names.height() + 6 : kTop + 14;
  std::string legend;
  for (const ChartSeries& line : chart.series) {
    const std::string colour = line.colour.empty() ? palette_colour(next_colour++) : escaped(line.colour);
    std::string points, dots;
    for (size_t j = 0; j < std::min(line.x.size(), line.y.size()); ++j) {
      if (!std::isfinite(line.y[j]) || (chart.log_y && line.y[j] <= 0)) continue;
      points += fmt::format("{:.1f},{:.1f} ", x.at(line.x[j]), y.at(line.y[j]));
      if (line.dots)
        dots += fmt::format(
            "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"{}\"><title>{}: {:.4g}, "
            "{:.4g}</title></circle>\n",
            x.at(line.x[j]), y.at(line.y[j]), colour, escaped(line.name), line.x[j], line.y[j]);
    }
    svg += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\"{}/>{}\n",
                       points, colour, line.dots ? 2 : 1.3, dashes(line), dots);
    if (line.name.empty()) continue;
    legend += legend_row(line, colour, legend_x, row);
    row += kLegendRow;
  }
  if (names.n == 0 || beside) return svg + legend;
  return svg +
         fmt::format(
             "<rect x=\"{:.0f}\" y=\"{:.0f}\" width=\"{:.0f}\" height=\"{:.0f}\" fill=\"white\" "
             "fill-opacity=\"0.7\"/>\n",
             legend_x - 6, row - names.height() - 12, width - kRight - legend_x, names.height() + 4) +
         legend;
}

constexpr double kCellHeight = 26, kCellsWidth = 640, kNarrowestCell = 12, kBar = 90;
constexpr size_t kBarSteps = 20;

double cell_width(const HeatMap& map) {
  const auto n = static_cast<double>(std::max<size_t>(map.columns.size(), 1));
  return std::max(kNarrowestCell, std::floor(kCellsWidth / n));
}
double width_of(const HeatMap& map) {
  return kLeft + cell_width(map) * static_cast<double>(map.columns.size()) + kBar;
}
double height_of(const HeatMap& map) {
  return kTop + kCellHeight * static_cast<double>(map.rows.size()) + kBottom;
}

/// The scale of colours: 0 at the bottom, 1 at the top.
std::string colour_bar(double x, double height) {
  std::string svg;
  const double step = height / static_cast<double>(kBarSteps);
  for (size_t i = 0; i < kBarSteps; ++i) {
    const double place = static_cast<double>(i) / static_cast<double>(kBarSteps - 1);
    svg += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"14\" height=\"{:.1f}\" fill=\"{}\"/>\n", x,
                       kTop + height - step * static_cast<double>(i + 1), step + 0.5, ramp_colour(place));
  }
  for (const double place : {0.0, 0.5, 1.0})
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{:.0f}%</text>\n", x + 18,
                       kTop + height * (1 - place) + 4, 100 * place);
  return svg;
}

std::string body(const HeatMap& map) {
  const double width = cell_width(map), height = kCellHeight * static_cast<double>(map.rows.size());
  const double right = kLeft + width * static_cast<double>(map.columns.size());
  std::string svg =
      fmt::format("<text x=\"{}\" y=\"28\" font-size=\"16\">{}</text>\n", kLeft, escaped(map.title));
  for (size_t row = 0; row < map.rows.size(); ++row) {
    const double y = kTop + kCellHeight * static_cast<double>(row);
    svg += fmt::format("<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n", kLeft - 8,
                       y + kCellHeight / 2 + 4, escaped(map.rows[row]));
    for (size_t column = 0; column < map.columns.size(); ++column) {
      const double value = map.values.at(row).at(column);
      if (!std::isfinite(value)) continue;
      svg += fmt::format(
          "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{}\" fill=\"{}\"><title>{} {}, {} {}: "
          "{:.1f}%</title></rect>\n",
          kLeft + width * static_cast<double>(column), y, width - 1, kCellHeight - 1, ramp_colour(value),
          escaped(map.x_label), escaped(map.columns[column]), escaped(map.y_label), escaped(map.rows[row]),
          100 * value);
    }
  }
  // Names of columns may be wider than the columns: leave some out.
  size_t longest = 1;
  for (const std::string& name : map.columns) longest = std::max(longest, name.size());
  const auto every = static_cast<size_t>(std::ceil(kLetter * static_cast<double>(longest + 1) / width));
  for (size_t column = 0; column < map.columns.size(); column += every)
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n",
                       kLeft + width * (static_cast<double>(column) + 0.5), kTop + height + 18,
                       escaped(map.columns[column]));
  svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n",
                     (kLeft + right) / 2, kTop + height + 44, escaped(map.x_label));
  svg +=
      fmt::format("<text transform=\"translate(20 {:.1f}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
                  kTop + height / 2, escaped(map.y_label));
  return svg + colour_bar(right + 20, height);
}

std::string file_of(double width, double height, const std::string& content) {
  return fmt::format(
             "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
             "font-family=\"sans-serif\" font-size=\"13\">\n{2}\n<rect width=\"100%\" height=\"100%\" "
             "fill=\"white\"/>\n",
             width, height, kSvgMark) +
         content + "</svg>\n";
}

}  // namespace

std::string to_svg(const Chart& chart) {
  const Names names = names_of(chart);
  const bool beside = names.n > kNamesInPlot;
  const double height = beside ? std::max(kHeight, kTop + kBottom + names.height()) : kHeight;
  return file_of(std::round(kWidth + (beside ? names.width() : 0)), height,
                 body(chart, kWidth, height, beside));
}

std::string to_svg(const std::string& title, const std::vector<std::vector<Chart>>& rows) {
  std::string svg =
      fmt::format("<text x=\"{}\" y=\"34\" font-size=\"18\">{}</text>\n", kLeft, escaped(title));
  size_t columns = 1;
  for (size_t row = 0; row < rows.size(); ++row) {
    columns = std::max(columns, rows[row].size());
    for (size_t column = 0; column < rows[row].size(); ++column)
      svg += fmt::format("<g transform=\"translate({} {})\">\n{}</g>\n",
                         kPanelWidth * static_cast<double>(column),
                         kHeader + kPanelHeight * static_cast<double>(row),
                         body(rows[row][column], kPanelWidth, kPanelHeight, false));
  }
  return file_of(kPanelWidth * static_cast<double>(columns),
                 kHeader + kPanelHeight * static_cast<double>(rows.size()), svg);
}

std::string heat_maps_to_svg(const std::string& title, const std::vector<HeatMap>& panels) {
  std::string svg =
      fmt::format("<text x=\"{}\" y=\"34\" font-size=\"18\">{}</text>\n", kLeft, escaped(title));
  double width = kLeft + kRight, below = kHeader;
  for (const HeatMap& panel : panels) {
    svg += fmt::format("<g transform=\"translate(0 {})\">\n{}</g>\n", below, body(panel));
    width = std::max(width, width_of(panel));
    below += height_of(panel);
  }
  return file_of(width, below, svg);
}

std::string palette_colour(size_t n) {
  return kColours[n % kColours.size()];
}

std::string ramp_colour(double place) {
  constexpr double kStops[][3] = {{68, 1, 84}, {59, 82, 139}, {33, 145, 140}, {122, 209, 81}};
  constexpr size_t kSteps = std::size(kStops) - 1;
  const double at = std::clamp(place, 0.0, 1.0) * static_cast<double>(kSteps);
  const auto stop = std::min(static_cast<size_t>(at), kSteps - 1);
  std::array<int, 3> rgb{};
  for (size_t i = 0; i < 3; ++i)
    rgb[i] = static_cast<int>(std::lround(kStops[stop][i] + (at - static_cast<double>(stop)) *
                                                                (kStops[stop + 1][i] - kStops[stop][i])));
  return fmt::format("#{:02x}{:02x}{:02x}", rgb[0], rgb[1], rgb[2]);
}

}  // namespace elastify::report
