#include "report/svg_chart.h"

#include <doctest/doctest.h>

#include <cmath>
#include <string_view>

using namespace elastify::report;

namespace {

size_t count(std::string_view text, std::string_view part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

Chart make_chart(const std::string& title) {
  return {.title = title,
          .x_label = "layer",
          .y_label = "loss",
          .series = {{.name = "one & <two>", .x = {0, 1, 2}, .y = {-1, 0, 1}},
                     {.name = {}, .x = {0, 1}, .y = {1, 1}}}};
}

Chart chart_of(int n_series) {
  Chart chart{"title", "x", "y", true, {}};
  for (int i = 0; i < n_series; ++i)
    chart.series.push_back({"series " + std::to_string(i), {0.2, 0.6, 1}, {4e6 / (i + 1), 300, 20}});
  return chart;
}

std::string fill_of(double place) {
  return "fill=\"" + ramp_colour(place) + "\"";
}

}  // namespace

TEST_CASE("svg chart: one chart has its title, labels, a line per series and text safe for XML") {
  const std::string svg = to_svg(make_chart("a < b"));
  CHECK(svg.starts_with("<svg "));
  CHECK(svg.ends_with("</svg>\n"));
  CHECK(svg.find(">a &lt; b</text>") != std::string::npos);
  CHECK(svg.find(">layer</text>") != std::string::npos);
  CHECK(svg.find(">one &amp; &lt;two&gt;</text>") != std::string::npos);
  CHECK(count(svg, "<polyline") == 2);
  CHECK(count(svg, "<circle") == 5);
  CHECK(count(svg, ">0</text>") == 2);  // neither -0 nor 1.2e-17
  CHECK(to_svg(make_chart("a < b")) == svg);
}

TEST_CASE("svg chart: a series can have a colour, no dots, and no place in the legend") {
  Chart chart = make_chart("a");
  chart.series[1].colour = "#123456";
  for (ChartSeries& line : chart.series) line.dots = false;
  chart.series[1].dash = 1;
  const std::string svg = to_svg(chart);
  CHECK(count(svg, "<circle") == 0);
  CHECK(count(svg, "#123456") == 1);
  CHECK(count(svg, "stroke-dasharray") == 1);
  CHECK(count(svg, "h28") == 1);
}

TEST_CASE("svg chart: with whole_x, ticks are at whole numbers only") {
  Chart chart = make_chart("a");
  const auto fractions = [&] { return count(to_svg(chart), ".5</text>"); };
  chart.series[0].y = {1, 2, 3};
  chart.series[1].y = {1, 3};
  chart.y_label = "";
  const size_t free = fractions();
  chart.whole_x = true;
  CHECK(free > fractions());
}

TEST_CASE("svg chart: several charts are laid out in rows, and the file fits the longest row") {
  const std::string svg = to_svg("all of it", {{make_chart("a"), make_chart("b")}, {make_chart("c")}});
  CHECK(svg.find(">all of it</text>") != std::string::npos);
  CHECK(svg.find("viewBox=\"0 0 1120 770\"") != std::string::npos);
  CHECK(svg.find("translate(0 50)") != std::string::npos);
  CHECK(svg.find("translate(560 50)") != std::string::npos);
  CHECK(svg.find("translate(0 410)") != std::string::npos);
  CHECK(count(svg, "<polyline") == 6);
  CHECK(count(svg, "<svg") == 1);
}

TEST_CASE("svg chart: an empty chart and a logarithmic one without positive values are still charts") {
  CHECK(to_svg(Chart{}).ends_with("</svg>\n"));
  CHECK(to_svg("none", {}).ends_with("</svg>\n"));
  Chart chart = make_chart("a");
  chart.log_y = true;
  chart.series[0].y = {-1, -2, 0};
  CHECK(to_svg(chart).find("nan") == std::string::npos);
}

TEST_CASE("svg chart: the colour ramp is clamped at both ends") {
  CHECK(ramp_colour(0) == "#440154");
  CHECK(ramp_colour(-3) == ramp_colour(0));
  CHECK(ramp_colour(1) == "#7ad151");
  CHECK(ramp_colour(2) == ramp_colour(1));
  CHECK(ramp_colour(0.5) != ramp_colour(0.4));
}

TEST_CASE("svg chart: every series has a line, its points and a name") {
  for (const int n : {1, 3, 4, 40}) {
    CAPTURE(n);
    const std::string svg = to_svg(chart_of(n));
    CHECK(count(svg, "<polyline") == static_cast<size_t>(n));
    CHECK(count(svg, "<circle") == static_cast<size_t>(3 * n));
    for (int i = 0; i < n; ++i) CHECK(count(svg, ">series " + std::to_string(i) + "</text>") == 1);
  }
}

TEST_CASE("svg chart: the names of many series stand beside the plot, and the file grows to hold them") {
  CHECK(to_svg(chart_of(3)).find("viewBox=\"0 0 720 440\"") != std::string::npos);
  const std::string many = to_svg(chart_of(40));
  CHECK(many.find("viewBox=\"0 0 720 ") == std::string::npos);
  CHECK(many.find(" 440\"") == std::string::npos);
  CHECK(many.find("<path d=\"M710 64h") != std::string::npos);
}

TEST_CASE("svg chart: colour and dashes can be chosen, and large ticks are short") {
  Chart chart = chart_of(2);
  CHECK(to_svg(chart).find("stroke-dasharray") == std::string::npos);
  chart.series[1].colour = palette_colour(0);
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

TEST_CASE("svg chart: heat maps have a cell per value, names that fit, a colour bar, and are well-formed") {
  HeatMap map{
      .title = "MLP <width>", .x_label = "layer", .y_label = "level", .columns = {}, .rows = {"1", "0.5"}};
  map.values.resize(2);
  for (size_t layer = 0; layer < 40; ++layer) {
    map.columns.push_back(std::to_string(layer));
    map.values[0].push_back(1);
    map.values[1].push_back(layer == 7 ? NAN : 0.25);
  }
  const std::string svg = heat_maps_to_svg("a & b", {map, map});
  CHECK(svg.starts_with("<svg "));
  CHECK(svg.ends_with("</svg>\n"));
  CHECK(svg.find(">a &amp; b</text>") != std::string::npos);
  CHECK(count(svg, ">MLP &lt;width&gt;</text>") == 2);
  CHECK(count(svg, "<title>") == 2 * 79);
  CHECK(count(svg, "<title>layer 3, level 0.5: 25.0%</title>") == 2);
  CHECK(count(svg, fill_of(1)) == 2 * 41);
  CHECK(count(svg, ">39</text>") + count(svg, ">38</text>") == 2);  // every second name at most
  CHECK(count(svg, "translate(0 50)") == 1);
  CHECK(count(svg, "translate(0 212)") == 1);
  // Every element that is opened is closed.
  CHECK(count(svg, "<text") == count(svg, "</text>"));
  CHECK(count(svg, "<g ") == count(svg, "</g>"));
  CHECK(count(svg, "<title") == count(svg, "</title>"));
  CHECK(count(svg, "<rect") == count(svg, "</rect>") + 1 + 2 * 20);
}
