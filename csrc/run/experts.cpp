#include "experts.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

namespace bitsmith {
namespace {

const float *bias_of(const Linear &linear) { return linear.bias.empty() ? nullptr : linear.bias.data(); }

// The `used` largest scores of a token, by falling score, and their weights. scores[count] are overwritten.
void choose(float *scores, int count, const Routing &routing, int *chosen, float *weights) {
  const int used = routing.used;
  const auto soften = [](float *x, int n) {
    const float most = *std::max_element(x, x + n);
    float total = 0.0f;
    for (int i = 0; i < n; ++i) total += x[i] = std::exp(x[i] - most);
    for (int i = 0; i < n; ++i) x[i] /= total;
  };
  if (!routing.chosen) soften(scores, count);
  static thread_local std::vector<int> order;
  order.resize(count);
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&](int i) { return scores[i] == scores[i] ? scores[i] : INFINITY; };  // NaN is not to be hidden
  std::partial_sort(order.begin(), order.begin() + used, order.end(),
                    [&](int a, int b) { return key(a) != key(b) ? key(a) > key(b) : a < b; });
  for (int i = 0; i < used; ++i) chosen[i] = order[i], weights[i] = scores[order[i]];
  if (routing.chosen) soften(weights, used);
  if (!routing.normalize) return;
  const float total = std::accumulate(weights, weights + used, 0.0f);
  for (int i = 0; i < used; ++i) weights[i] /= total;
}

}  // namespace

// Which tokens each expert gets. Places are rows of the gathered tokens, expert by expert.
struct Experts::Routes {
  struct Active {
    int expert, first, count;  // places first .. first + count
  };
  std::vector<Active> active;
  std::vector<int> token_of;   // [places]
  std::vector<int> group_of;   // [places], number of the active expert
  std::vector<int> places;     // [rows, used], by rising number of the expert
  std::vector<float> weights;  // [places]

  int count() const { return static_cast<int>(token_of.size()); }
};

Experts::Experts(Activation activation, const Routing &routing, Linear router, std::vector<Linear> gates,
                 std::vector<Linear> ups, std::vector<Linear> downs)
    : activation_(activation),
      routing_(routing),
      router_(std::move(router)),
      gates_(std::move(gates)),
      ups_(std::move(ups)),
      downs_(std::move(downs)) {
  const size_t count = gates_.size();
  if (!count || ups_.size() != count || downs_.size() != count || routing.used < 1 ||
      routing.used > static_cast<int>(count))
    throw std::invalid_argument("the experts of a block, or the number that a token uses, make no sense.");
}

void Experts::check(int hidden) const {
  const int width = gates_.front().weight->rows();
  check_linear("router", router_, static_cast<int>(gates_.size()), hidden);
  for (size_t e = 0; e < gates_.size(); ++e) {
    check_linear("gate of an expert", gates_[e], width, hidden);
    check_linear("up of an expert", ups_[e], width, hidden);
    check_linear("down of an expert", downs_[e], hidden, width);
  }
}

void Experts::route(Compute &compute, const Rows &x, Routes &routes) const {
  const int rows = x.count, count = static_cast<int>(gates_.size()), used = routing_.used;
  const size_t stride = padded(count);
  float *scores = compute.scratch(Scratch::scores, rows * stride);
  compute.round(x.data, x.stride, rows, router_.weight->cols(), {&router_});
  compute.multiply(router_, {x}, scores, stride);
  std::vector<int> chosen(static_cast<size_t>(rows) * used);
  std::vector<float> weights(chosen.size());
  compute.each_row(rows, [&](int row) {
    choose(scores + row * stride, count, routing_, &chosen[static_cast<size_t>(row) * used],
           &weights[static_cast<size_t>(row) * used]);
  });
  std::vector<int> seen(count + 1);
  for (const int expert : chosen) ++seen[expert + 1];
  for (int e = 0; e < count; ++e) {
    if (seen[e + 1]) routes.active.push_back({e, seen[e], seen[e + 1]});
    seen[e + 1] += seen[e];
  }
  routes.token_of.resize(chosen.size());
  routes.group_of.resize(chosen.size());
  routes.places.resize(chosen.size());
  routes.weights.resize(chosen.size());
  for (size_t i = 0; i < chosen.size(); ++i) {
    const int place = seen[chosen[i]]++;
    routes.token_of[place] = static_cast<int>(i) / used;
    routes.places[i] = place;
    routes.weights[place] = weights[i];
  }
  for (size_t a = 0; a < routes.active.size(); ++a)
    std::fill_n(routes.group_of.begin() + routes.active[a].first, routes.active[a].count, static_cast<int>(a));
  for (int row = 0; row < rows; ++row)  // sums do not depend on the order of scores
    std::sort(routes.places.begin() + row * used, routes.places.begin() + (row + 1) * used);
}

// gate, up: [places, width], of the tokens gathered
void Experts::first_products(Compute &compute, const Rows &x, const Routes &routes, float *gate, float *up) const {
  const int hidden = gates_.front().weight->cols();
  const size_t stride = padded(gates_.front().weight->rows());
  float *gathered = compute.scratch(Scratch::gathered, static_cast<size_t>(routes.count()) * hidden);
  RoundedBuffer &rounded = compute.rounded();
  rounded.start(hidden);
  std::vector<Product> products;
  for (const Routes::Active &active : routes.active) {
    const Linear *both[2] = {&gates_[active.expert], &ups_[active.expert]};
    const int group = rounded.add(compute.roundings({both[0], both[1]}, active.count), active.count);
    const float *from = gathered + static_cast<size_t>(active.first) * hidden;
    const Input input{{from, static_cast<size_t>(hidden), active.count}, group};
    products.push_back({both[0], input, gate + active.first * stride, stride});
    products.push_back({both[1], input, up + active.first * stride, stride});
  }
  rounded.reserve();
  compute.each_row(routes.count(), [&](int place) {
    float *own = gathered + static_cast<size_t>(place) * hidden;
    std::copy_n(x.data + routes.token_of[place] * x.stride, hidden, own);
    const int group = routes.group_of[place];
    rounded.round(compute.kernels(), group, place - routes.active[group].first, own);
  });
  compute.multiply(products.data(), static_cast<int>(products.size()));
}

// down: [places, hidden], without bias
void Experts::second_product(Compute &compute, const Routes &routes, float *gate, float *up, float *down) const {
  const int width = gates_.front().weight->rows();
  const size_t stride = padded(width), out_stride = padded(downs_.front().weight->rows());
  RoundedBuffer &rounded = compute.rounded();
  rounded.start(width);
  std::vector<Product> products;
  for (const Routes::Active &active : routes.active) {
    const Linear *linear = &downs_[active.expert];
    const int group = rounded.add(compute.roundings({linear}, active.count), active.count);
    const Input input{{gate + active.first * stride, stride, active.count}, group};
    products.push_back({linear, input, down + active.first * out_stride, out_stride});
  }
  rounded.reserve();
  compute.each_row(routes.count(), [&](int place) {
    const int group = routes.group_of[place], expert = routes.active[group].expert;
    float *own = gate + place * stride;
    gated(compute.kernels(), activation_, own, bias_of(gates_[expert]), up + place * stride, bias_of(ups_[expert]),
          width);
    rounded.round(compute.kernels(), group, place - routes.active[group].first, own);
  });
  compute.multiply(products.data(), static_cast<int>(products.size()));
}

void Experts::run(Compute &compute, Pass &, const Rows &x, float *out, size_t stride) const {
  const int hidden = gates_.front().weight->cols();
  const size_t inner = padded(gates_.front().weight->rows()), down_stride = padded(hidden);
  Routes routes;
  route(compute, x, routes);
  float *gate = compute.scratch(Scratch::gate, routes.count() * inner);
  float *up = compute.scratch(Scratch::up, routes.count() * inner);
  float *down = compute.scratch(Scratch::mix, routes.count() * down_stride);
  first_products(compute, x, routes, gate, up);
  second_product(compute, routes, gate, up, down);
  compute.each_row(x.count, [&](int row) {
    float *to = out + row * stride;
    std::fill_n(to, hidden, 0.0f);
    for (int i = 0; i < routing_.used; ++i) {
      const int place = routes.places[static_cast<size_t>(row) * routing_.used + i];
      const float weight = routes.weights[place], *from = down + place * down_stride;
      const float *bias = bias_of(downs_[routes.active[routes.group_of[place]].expert]);
      for (int k = 0; k < hidden; ++k) to[k] += weight * (bias ? from[k] + bias[k] : from[k]);
    }
  });
}

}  // namespace bitsmith
