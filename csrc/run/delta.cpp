#include "delta.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace bitsmith {
namespace {

constexpr float kUnitEps = 1e-6f;  // added to the sum of squares

}  // namespace

struct DeltaNet::Buffers {
  float *mixed, *z, *gates;  // products: [rows, stride]
  size_t mixed_stride, z_stride, gate_stride;
  float *convolved;    // [rows, mixed]: q, k and v
  float *kept, *rate;  // [rows, heads]
  float *out;          // [rows, values]
};

DeltaNet::DeltaNet(const DeltaShape &shape, Linear mixed, Linear z, std::vector<Linear> gates, Linear output,
                   std::vector<float> taps, std::vector<float> factors, std::vector<float> shifts,
                   std::vector<float> norm)
    : shape_(shape),
      mixed_(std::move(mixed)),
      z_(std::move(z)),
      output_(std::move(output)),
      gates_(std::move(gates)),
      factors_(std::move(factors)),
      shifts_(std::move(shifts)),
      norm_(std::move(norm)) {
  if (shape.layer < 0 || shape.key_heads < 1 || shape.value_heads < 1 || shape.value_heads % shape.key_heads ||
      shape.key_dim < 1 || shape.value_dim < 1 || shape.taps < 2 || gates_.size() != (shape.paired ? 1u : 2u))
    throw std::invalid_argument("the shape of a gated delta net makes no sense.");
  const size_t heads = shape.value_heads, width = shape.mixed();
  if (taps.size() != width * shape.taps || factors_.size() != heads || shifts_.size() != heads ||
      norm_.size() != static_cast<size_t>(shape.value_dim))
    throw std::invalid_argument("a vector of a gated delta net has the wrong length.");
  taps_.resize(taps.size());
  for (size_t i = 0; i < width; ++i)
    for (int tap = 0; tap < shape.taps; ++tap) taps_[tap * width + i] = taps[i * shape.taps + tap];
  const float root = std::sqrt(static_cast<float>(shape.key_dim));
  key_unit_.assign(shape.key_dim, 1.0f / root);
  query_unit_.assign(shape.key_dim, 1.0f / static_cast<float>(shape.key_dim));
}

void DeltaNet::check(int hidden) const {
  check_linear("q, k and v", mixed_, shape_.mixed(), hidden);
  check_linear("z", z_, shape_.values(), hidden);
  for (const Linear &gate : gates_)
    check_linear("rates or paces", gate, (shape_.paired ? 2 : 1) * shape_.value_heads, hidden);
  check_linear("output", output_, hidden, shape_.values());
  for (const Linear *linear : {&mixed_, &z_, &output_})
    if (!linear->bias.empty()) throw std::invalid_argument("linears of a gated delta net have no bias.");
}

void DeltaNet::check(const Cache &cache) const {
  const auto &states = cache.shape().states;
  if (shape_.layer >= static_cast<int>(states.size()) || states[shape_.layer] != shape_.state())
    throw std::invalid_argument("the cache does not fit the model.");
}

std::vector<const Linear *> DeltaNet::inputs() const {
  std::vector<const Linear *> found{&mixed_, &z_};
  for (const Linear &gate : gates_) found.push_back(&gate);
  return found;
}

// One token: convolution, unit vectors q and k, decay and rate of each head. Tokens before this call's lie in the
// state.
void DeltaNet::prepare(const Kernels &kernels, Pass &pass, const Buffers &to, int row) const {
  const Pass::Sequence &sequence = pass.sequences[pass.sequence_of[row]];
  const int index = row - sequence.first, width = shape_.mixed(), before = shape_.taps - 1;
  const float *last = pass.cache.state(shape_.layer, sequence.slot) + shape_.matrices();
  static thread_local std::vector<const float *> inputs;
  inputs.resize(shape_.taps);
  for (int tap = 0; tap < shape_.taps; ++tap) {
    const int at = index - before + tap;
    inputs[tap] =
        at < 0 ? last + static_cast<size_t>(before + at) * width : to.mixed + (sequence.first + at) * to.mixed_stride;
  }
  float *own = to.convolved + static_cast<size_t>(row) * width;
  kernels.convolve(inputs.data(), taps_.data(), shape_.taps, width, own);
  const int dim = shape_.key_dim;
  const float eps = kUnitEps / static_cast<float>(dim);
  for (int h = 0; h < 2 * shape_.key_heads; ++h) {
    const std::vector<float> &unit = h < shape_.key_heads ? query_unit_ : key_unit_;
    kernels.rms_norm(own + h * dim, unit.data(), dim, eps, own + h * dim);
  }
  const float *gates = to.gates + row * to.gate_stride;
  const int heads = shape_.value_heads, shared = heads / shape_.key_heads;
  for (int h = 0; h < heads; ++h) {
    const int rate_at = shape_.paired ? h / shared * 2 * shared + h % shared : h;
    const int pace_at = shape_.paired ? rate_at + shared : static_cast<int>(padded(heads)) + h;
    const float pace = gates[pace_at] + shifts_[h];
    const float soft = pace > 20.0f ? pace : std::log1p(std::exp(pace));
    to.kept[static_cast<size_t>(row) * heads + h] = std::exp(soft * factors_[h]);
    to.rate[static_cast<size_t>(row) * heads + h] = 1.0f / (1.0f + std::exp(-gates[rate_at]));
  }
}

// The last inputs of the convolution go to the cache.
void DeltaNet::remember(Pass &pass, const Buffers &from) const {
  const size_t width = shape_.mixed();
  const int before = shape_.taps - 1;
  for (const Pass::Sequence &sequence : pass.sequences) {
    float *last = pass.cache.state(shape_.layer, sequence.slot) + shape_.matrices();
    for (int i = 0; i < before; ++i) {  // those that stay move to lower places first
      const int at = sequence.count - before + i;
      const float *input =
          at < 0 ? last + (before + at) * width : from.mixed + (sequence.first + at) * from.mixed_stride;
      std::copy(input, input + width, last + i * width);
    }
  }
}

// All tokens of each head, one head a piece of work.
void DeltaNet::recur(Compute &compute, Pass &pass, const Buffers &to) const {
  const int heads = shape_.value_heads, values = shape_.values(), width = shape_.mixed();
  compute.run(static_cast<int>(pass.sequences.size()) * heads, [&](int piece) {
    const Pass::Sequence &sequence = pass.sequences[piece / heads];
    const int h = piece % heads;
    const int key_head = shape_.tiled ? h % shape_.key_heads : h / (heads / shape_.key_heads);
    const float *first = to.convolved + static_cast<size_t>(sequence.first) * width;
    const size_t at = static_cast<size_t>(sequence.first) * heads + h;
    Recurrence task{};
    task.q = first + key_head * shape_.key_dim;
    task.k = first + shape_.keys() + key_head * shape_.key_dim;
    task.v = first + 2 * shape_.keys() + h * shape_.value_dim;
    task.key_stride = task.value_stride = width;
    task.kept = to.kept + at;
    task.rate = to.rate + at;
    task.gate_stride = heads;
    task.count = sequence.count;
    task.key_dim = shape_.key_dim;
    task.value_dim = shape_.value_dim;
    task.state =
        pass.cache.state(shape_.layer, sequence.slot) + static_cast<size_t>(h) * shape_.key_dim * shape_.value_dim;
    task.out = to.out + static_cast<size_t>(sequence.first) * values + h * shape_.value_dim;
    task.out_stride = values;
    compute.kernels().recur(task);
  });
}

void DeltaNet::run(Compute &compute, Pass &pass, const Rows &x, float *out, size_t stride) const {
  const int rows = pass.rows(), heads = shape_.value_heads, values = shape_.values(), width = shape_.mixed();
  const size_t own_gate = padded(shape_.paired ? 2 * heads : heads);
  Buffers to{};
  to.mixed_stride = padded(width), to.z_stride = padded(values), to.gate_stride = own_gate * gates_.size();
  to.mixed = compute.scratch(Scratch::q, rows * to.mixed_stride);
  to.z = compute.scratch(Scratch::gate, rows * to.z_stride);
  to.gates = compute.scratch(Scratch::scores, rows * to.gate_stride);
  to.convolved = compute.scratch(Scratch::turned, static_cast<size_t>(rows) * width);
  to.kept = compute.scratch(Scratch::k, static_cast<size_t>(rows) * heads);
  to.rate = compute.scratch(Scratch::v, static_cast<size_t>(rows) * heads);
  to.out = compute.scratch(Scratch::mix, static_cast<size_t>(rows) * values);
  std::vector<Product> products{{&mixed_, {x}, to.mixed, to.mixed_stride}, {&z_, {x}, to.z, to.z_stride}};
  for (size_t i = 0; i < gates_.size(); ++i)
    products.push_back({&gates_[i], {x}, to.gates + i * own_gate, to.gate_stride});
  compute.multiply(products.data(), static_cast<int>(products.size()));
  for (const Pass::Sequence &sequence : pass.sequences)
    if (sequence.start == 0) std::fill_n(pass.cache.state(shape_.layer, sequence.slot), shape_.state(), 0.0f);
  {
    const Stopwatch watch(compute.times().attention);
    const Kernels &kernels = compute.kernels();
    compute.each_row(rows, [&](int row) { prepare(kernels, pass, to, row); });
    remember(pass, to);
    recur(compute, pass, to);
  }
  RoundedBuffer &rounded = compute.rounded();
  rounded.start(values);
  rounded.add(compute.roundings({&output_}, rows), rows);
  rounded.reserve();
  compute.each_row(rows, [&](int row) {
    float *own = to.out + static_cast<size_t>(row) * values, *gate = to.z + row * to.z_stride;
    for (int h = 0; h < heads; ++h) {
      float *head = own + h * shape_.value_dim;
      compute.kernels().rms_norm(head, norm_.data(), shape_.value_dim, shape_.norm_eps, head);
    }
    compute.kernels().swiglu(gate, own, values);
    rounded.round(compute.kernels(), 0, row, gate);
  });
  compute.multiply(output_, {{to.z, to.z_stride, rows}}, out, stride);
}

}  // namespace bitsmith
