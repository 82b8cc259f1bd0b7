#include "base/svg_chart.h"

#include <doctest/doctest.h>

#include <cmath>

namespace elastify {
namespace {

Chart chart_of(int n_series) {
  Chart chart{"title", "x", "y", true, {}};
  for (int i = 0; i < n_series; ++i)
    chart.series.push_back({"series " + std::to_string(i), {0.2, 0.6, 1}, {4e6 / (i + 1), 300, 20}});
  return chart;
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST_SUITE("base") {
  TEST_CASE("svg chart: every series has a line, its points and a name") {
    for (const int n : {1, 3, 4, 40}) {
      CAPTURE(n);
      const std::string svg = to_svg(chart_of(n));
      CHECK(count(svg, "<polyline") == static_cast<size_t>(n));
      CHECK(count(svg, "<circle") == static_cast<size_t>(3 * n));
      for (int i = 0; i < n; ++i) CHECK(count(svg, ">series " + std::to_string(i) + "</text>") == 1);
    }
  }

  TEST_CASE("svg chart: the names of many series stand beside the plot, which grows to hold them") {
    CHECK(to_svg(chart_of(3)).find("viewBox=\"0 0 720 440\"") != std::string::npos);
    const std::string many = to_svg(chart_of(40));
    CHECK(many.find("viewBox=\"0 0 720 ") == std::string::npos);
    CHECK(many.find(" 440\"") == std::string::npos);
    CHECK(many.find("<path d=\"M710 64h") != std::string::npos);
  }

  TEST_CASE("svg chart: colour and dashes can be chosen, and large ticks are short") {
    Chart chart = chart_of(2);
    CHECK(to_svg(chart).find("stroke-dasharray") == std::string::npos);
    chart.series[1].colour = 0;
    chart.series[1].dash = 1;
    const std::string svg = to_svg(chart);
    CHECK(count(svg, "stroke-dasharray") == 2);  // the line and its key
    CHECK(svg.find("#c8501e") == std::string::npos);
    CHECK(svg.find(">1M</text>") != std::string::npos);
  }

  TEST_CASE("svg chart: names are escaped, and values that are not numbers leave a gap") {
    Chart chart = chart_of(1);
    chart.series[0].name = "a<b & c";
    chart.series[0].y[1] = std::nan("");
    const std::string svg = to_svg(chart);
    CHECK(svg.find("a&lt;b &amp; c") != std::string::npos);
    CHECK(count(svg, "<circle") == 2);
    CHECK(svg.find("nan") == std::string::npos);
  }
}

}  // namespace
}  // namespace elastify
