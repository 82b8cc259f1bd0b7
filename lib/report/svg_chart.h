#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace elastify::report {

/// A comment in every SVG file of ours, by which it is known again.
inline constexpr const char* kSvgMark = "<!-- made by elastify -->";

struct ChartSeries {
  std::string name;  ///< empty: not in the legend
  std::vector<double> x, y;
  std::string colour = {};  ///< CSS; empty: the next of the palette
  int dash = 0;             ///< index into the dash patterns; 0: solid
  bool dots = true;
};

/// A line chart as a self-contained SVG file. With more than a few series, the legend stands beside the plot.
/// A browser shows a point's values under the mouse.
struct Chart {
  std::string title, x_label, y_label;
  bool log_y = false;
  std::vector<ChartSeries> series = {};
  bool legend_below = false;  ///< the legend in the lower right corner instead of the upper
  bool whole_x = false;       ///< ticks at whole numbers only, for x that counts something
};
std::string to_svg(const Chart& chart);

/// Several charts in one file, row by row from the top; rows may differ in length.
std::string to_svg(const std::string& title, const std::vector<std::vector<Chart>>& rows);

/// Shares from 0 to 1 as colours, row by row from the top, with a scale of colours. A browser
/// shows a cell's value under the mouse.
struct HeatMap {
  std::string title, x_label, y_label;
  std::vector<std::string> columns = {}, rows = {};  ///< names along the axes
  std::vector<std::vector<double>> values = {};      ///< [rows][columns]; not finite: an empty cell
};
/// Several heat maps in one file, one below the other.
std::string heat_maps_to_svg(const std::string& title, const std::vector<HeatMap>& panels);

/// The n-th colour of the palette, for lines that have none of their own.
std::string palette_colour(size_t n);
/// A colour for `place` from 0 (dark blue) to 1 (light green), for series that have an order.
std::string ramp_colour(double place);

}  // namespace elastify::report
