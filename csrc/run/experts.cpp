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
  // How many tokens of an expert are computed as if each came alone. They stand at its front.
  int single(const Active &of, const Compute &compute) const {
    const auto begin = token_of.begin() + of.first;
    return static_cast<int>(std::lower_bound(begin, begin + of.count, compute.single()) - begin);
  }
  int begin(Slice slice) const { return active[slice.first].first; }
  int count(Slice slice) const { return active[slice.end - 1].first + active[slice.end - 1].count - begin(slice); }
};

// What lies between the products, [places, stride] each.
struct Experts::Buffers {
  float *gate, *up, *down;
  size_t stride, down_stride;
};

Experts::Experts(Activation activation, const Routing &routing, Router router, std::vector<Linear> gates,
                 std::vector<Linear> ups, std::vector<Linear> downs, std::shared_ptr<Residency> residency)
    : activation_(activation),
      routing_(routing),
      router_(std::move(router)),
      gates_(std::move(gates)),
      ups_(std::move(ups)),
      downs_(std::move(downs)),
      residency_(std::move(residency)) {
  const size_t count = gates_.size();
  if (!count || ups_.size() != count || downs_.size() != count || routing.used < 1 ||
      routing.used > static_cast<int>(count) || (!router_.scales.empty() && router_.scales.size() != count))
    throw std::invalid_argument("the experts of a block, or the number that a token uses, make no sense.");
}

void Experts::check(int hidden) const {
  const int width = gates_.front().weight->rows();
  check_linear("router", router_.linear, static_cast<int>(gates_.size()), hidden);
  if (!router_.norm.empty() && static_cast<int>(router_.norm.size()) != hidden)
    throw std::invalid_argument("the norm of a router has the wrong length.");
  for (size_t e = 0; e < gates_.size(); ++e) {
    check_linear("gate of an expert", gates_[e], width, hidden);
    check_linear("up of an expert", ups_[e], width, hidden);
    check_linear("down of an expert", downs_[e], hidden, width);
  }
}

// The router's input, normed if it is to be.
Rows Experts::normed(Compute &compute, const Rows &x) const {
  if (router_.norm.empty()) return x;
  const int hidden = router_.linear.weight->cols();
  float *to = compute.scratch(Scratch::gathered, static_cast<size_t>(x.count) * hidden);
  compute.each_row(x.count, [&](int row) {
    compute.kernels().rms_norm(x.data + row * x.stride, router_.norm.data(), hidden, router_.norm_eps,
                               to + static_cast<size_t>(row) * hidden);
  });
  return {to, static_cast<size_t>(hidden), x.count};
}

Experts::Routes Experts::route(Compute &compute, const Rows &x) const {
  const int rows = x.count, count = static_cast<int>(gates_.size()), used = routing_.used;
  const size_t stride = padded(count);
  float *scores = compute.scratch(Scratch::scores, rows * stride);
  const Rows scored = normed(compute, x);
  compute.round(scored.data, scored.stride, rows, router_.linear.weight->cols(), {&router_.linear});
  compute.multiply(router_.linear, {scored}, scores, stride);
  std::vector<int> chosen(static_cast<size_t>(rows) * used);
  std::vector<float> weights(chosen.size());
  compute.each_row(rows, [&](int row) {
    choose(scores + row * stride, count, routing_, &chosen[static_cast<size_t>(row) * used],
           &weights[static_cast<size_t>(row) * used]);
  });
  Routes routes;
  std::vector<int> next(count + 1);  // places that are taken, by expert
  for (const int expert : chosen) ++next[expert + 1];
  for (int e = 0; e < count; ++e) {
    if (next[e + 1]) routes.active.push_back({e, next[e], next[e + 1]});
    next[e + 1] += next[e];
  }
  routes.token_of.resize(chosen.size());
  routes.group_of.resize(chosen.size());
  routes.places.resize(chosen.size());
  routes.weights.resize(chosen.size());
  for (size_t i = 0; i < chosen.size(); ++i) {
    const int place = next[chosen[i]]++;
    routes.token_of[place] = static_cast<int>(i) / used;
    routes.places[i] = place;
    routes.weights[place] = weights[i] * (router_.scales.empty() ? 1.0f : router_.scales[chosen[i]]);
  }
  for (size_t a = 0; a < routes.active.size(); ++a)
    std::fill_n(routes.group_of.begin() + routes.active[a].first, routes.active[a].count, static_cast<int>(a));
  for (int row = 0; row < rows; ++row)  // sums do not depend on the order of scores
    std::sort(routes.places.begin() + row * used, routes.places.begin() + (row + 1) * used);
  return routes;
}

// The next experts whose matrices lie in memory together.
Experts::Slice Experts::fetched(Compute &compute, const Routes &routes, size_t first) const {
  if (!residency_) return {first, routes.active.size()};
  std::vector<Matrix *> wanted;
  size_t bytes = 0, end = first;
  for (; end < routes.active.size(); ++end) {
    const int e = routes.active[end].expert;
    Matrix *own[3] = {gates_[e].weight.get(), ups_[e].weight.get(), downs_[e].weight.get()};
    for (const Matrix *matrix : own) bytes += matrix->on_demand() ? matrix->bytes() : 0;
    if (end > first && bytes > residency_->limit()) break;
    wanted.insert(wanted.end(), own, own + 3);
  }
  residency_->need(wanted, compute.pool());
  return {first, end};
}

// gate, up: of the tokens gathered
void Experts::first_products(Compute &compute, const Rows &x, const Routes &routes, Slice slice,
                             const Buffers &to) const {
  const int hidden = gates_.front().weight->cols(), begin = routes.begin(slice);
  float *gathered = compute.scratch(Scratch::gathered, static_cast<size_t>(routes.count(slice)) * hidden);
  RoundedBuffer &rounded = compute.rounded();
  rounded.start(hidden);
  std::vector<Product> products;
  for (size_t a = slice.first; a < slice.end; ++a) {
    const Routes::Active &active = routes.active[a];
    const Linear *both[2] = {&gates_[active.expert], &ups_[active.expert]};
    const Roundings wanted = compute.roundings({both[0], both[1]}, active.count, routes.single(active, compute));
    const int group = rounded.add(wanted, active.count);
    const float *from = gathered + static_cast<size_t>(active.first - begin) * hidden;
    const Input input{{from, static_cast<size_t>(hidden), active.count}, group};
    products.push_back({both[0], input, to.gate + active.first * to.stride, to.stride});
    products.push_back({both[1], input, to.up + active.first * to.stride, to.stride});
  }
  rounded.reserve();
  compute.each_row(routes.count(slice), [&](int row) {
    const int place = begin + row, a = routes.group_of[place];
    float *own = gathered + static_cast<size_t>(row) * hidden;
    std::copy_n(x.data + routes.token_of[place] * x.stride, hidden, own);
    rounded.round(compute.kernels(), a - static_cast<int>(slice.first), place - routes.active[a].first, own);
  });
  compute.multiply(products.data(), static_cast<int>(products.size()));
}

// down: without bias
void Experts::second_product(Compute &compute, const Routes &routes, Slice slice, const Buffers &to) const {
  const int width = gates_.front().weight->rows(), begin = routes.begin(slice);
  RoundedBuffer &rounded = compute.rounded();
  rounded.start(width);
  std::vector<Product> products;
  for (size_t a = slice.first; a < slice.end; ++a) {
    const Routes::Active &active = routes.active[a];
    const Linear *linear = &downs_[active.expert];
    const Roundings wanted = compute.roundings({linear}, active.count, routes.single(active, compute));
    const int group = rounded.add(wanted, active.count);
    const Input input{{to.gate + active.first * to.stride, to.stride, active.count}, group};
    products.push_back({linear, input, to.down + active.first * to.down_stride, to.down_stride});
  }
  rounded.reserve();
  compute.each_row(routes.count(slice), [&](int row) {
    const int place = begin + row, a = routes.group_of[place], expert = routes.active[a].expert;
    float *own = to.gate + place * to.stride;
    gated(compute.kernels(), activation_, own, bias_of(gates_[expert]), to.up + place * to.stride,
          bias_of(ups_[expert]), width);
    rounded.round(compute.kernels(), a - static_cast<int>(slice.first), place - routes.active[a].first, own);
  });
  compute.multiply(products.data(), static_cast<int>(products.size()));
}

void Experts::run(Compute &compute, Pass &, const Rows &x, float *out, size_t stride) const {
  mix(compute, x, x, out, stride);
}

void Experts::mix(Compute &compute, const Rows &scored, const Rows &x, float *out, size_t stride) const {
  const int hidden = gates_.front().weight->cols();
  const Routes routes = route(compute, scored);
  Buffers buffers{};
  buffers.stride = padded(gates_.front().weight->rows());
  buffers.down_stride = padded(hidden);
  buffers.gate = compute.scratch(Scratch::gate, routes.count() * buffers.stride);
  buffers.up = compute.scratch(Scratch::up, routes.count() * buffers.stride);
  buffers.down = compute.scratch(Scratch::mix, routes.count() * buffers.down_stride);
  for (size_t first = 0; first < routes.active.size();) {
    const Slice slice = fetched(compute, routes, first);
    first_products(compute, x, routes, slice, buffers);
    second_product(compute, routes, slice, buffers);
    first = slice.end;
  }
  compute.each_row(x.count, [&](int row) {
    float *to = out + row * stride;
    std::fill_n(to, hidden, 0.0f);
    for (int i = 0; i < routing_.used; ++i) {
      const int place = routes.places[static_cast<size_t>(row) * routing_.used + i];
      const float weight = routes.weights[place], *from = buffers.down + place * buffers.down_stride;
      const float *bias = bias_of(downs_[routes.active[routes.group_of[place]].expert]);
      for (int k = 0; k < hidden; ++k) to[k] += weight * (bias ? from[k] + bias[k] : from[k]);
    }
  });
}

}  // namespace bitsmith
