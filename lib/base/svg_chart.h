#pragma once

#include <string>
#include <vector>

namespace elastify {

struct ChartSeries {
  std::string name;
  std::vector<double> x, y;
  int colour = -1;  ///< index into the chart's colours; -1: the series' own
  int dash = 0;     ///< index into the chart's dash patterns; 0: solid
};

/// A line chart as a self-contained SVG file. The names of more than a few series stand beside the plot, and
/// a browser shows a point's values under the mouse.
struct Chart {
  std::string title, x_label, y_label;
  bool log_y = false;
  std::vector<ChartSeries> series;
};
std::string to_svg(const Chart& chart);

}  // namespace elastify
