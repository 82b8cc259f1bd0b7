#pragma once

#include <string>
#include <vector>

namespace elastify {

struct ChartSeries {
  std::string name;
  std::vector<double> x, y;
};

/// A line chart as a self-contained SVG file.
struct Chart {
  std::string title, x_label, y_label;
  bool log_y = false;
  std::vector<ChartSeries> series;
};
std::string to_svg(const Chart& chart);

}  // namespace elastify
