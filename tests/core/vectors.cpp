// Holds csrc/vectors.h and csrc/run/dot.h against plain code, lane by lane. Prints what differs; built and run by
// test_vectors.py, for instruction sets that the machine at hand may not have.
#include "vectors.h"

#include <cmath>
#include <cstdio>
#include <limits>

#include "isa.h"
#include "run/dot.h"

using namespace bitsmith::BITSMITH_ISA;

namespace {

int failures = 0;

void expect(const char *what, float found, float wanted) {
  const bool same = wanted != wanted ? found != found : found == wanted && std::signbit(found) == std::signbit(wanted);
  if (!same && ++failures < 20) std::printf("%s: found %g, expected %g\n", what, found, wanted);
}

uint32_t random_bits() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(state >> 32);
}

// float16 to float32, by the definition
float half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float size = std::ldexp(static_cast<float>(exponent ? fraction + 1024 : fraction), (exponent ? exponent : 1) - 25);
  if (exponent == 31) size = fraction ? std::numeric_limits<float>::quiet_NaN() : INFINITY;
  return bits & 0x8000 ? -size : size;
}

void check_halves() {
  for (uint32_t first = 0; first < 65536; first += kLanes) {
    uint16_t bits[kLanes], back[kLanes];
    Words words;
    for (int i = 0; i < kLanes; ++i) words[i] = bits[i] = static_cast<uint16_t>(first + i);
    const Floats loaded = load_half(bits), moved = from_half(words);
    store_half(back, loaded);
    for (int i = 0; i < kLanes; ++i) {
      const float wanted = half_value(bits[i]);
      expect("load_half", loaded[i], wanted);
      expect("from_half", moved[i], wanted);
      expect("store_half", half_value(back[i]), wanted);
    }
  }
}

void check_floats() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float values[] = {0.0f, -0.0f,      0.5f,   -0.5f,    1.5f,      2.5f, -2.5f,
                          3.7f, 8388609.0f, -1e30f, INFINITY, -INFINITY, nan};
  for (float a : values) {
    expect("rint", rint(splat(a))[0], std::nearbyint(a));
    expect("clip", clip(splat(a), -2, 3)[0], a != a ? a : a < -2 ? -2 : a > 3 ? 3 : a);
    if (std::fabs(a) < 4e6f) expect("rint_to_ints", rint_to_ints(splat(a))[0], std::nearbyint(a) + 0.0f);
    for (float b : values) {
      expect("min", min(splat(a), splat(b))[0], a < b ? a : b);
      expect("max", max(splat(a), splat(b))[0], a > b ? a : b);
    }
  }
}

void check_transpose() {
  Floats rows[kLanes];
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < kLanes; ++j) rows[i][j] = static_cast<float>(16 * i + j);
  transpose(rows);
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < kLanes; ++j) expect("transpose", rows[i][j], static_cast<float>(16 * j + i));
}

void check_look_up() {
  uint8_t table[16];
  for (uint8_t &entry : table) entry = static_cast<uint8_t>(random_bits());
  uint8_t index[sizeof(Words)], found[sizeof(Words)];
  for (uint8_t &entry : index) entry = random_bits() & 15;
  store(found, look_up(table, load<Words>(index)));
  for (size_t i = 0; i < sizeof(Words); ++i) expect("look_up", found[i], table[index[i]]);
}

template <bool wide>
void check_dot() {
  for (int round = 0; round < 10000; ++round) {
    uint8_t codes[sizeof(Words)];
    int8_t x[4];
    for (uint8_t &code : codes) code = random_bits() & (wide ? 255 : 127);
    for (int8_t &entry : x) entry = static_cast<int8_t>(static_cast<int>(random_bits() % 255) - 127);
    if (round == 0) std::memset(codes, wide ? 0 : 127, sizeof codes), std::memset(x, -127, sizeof x);
    int32_t four;
    std::memcpy(&four, x, 4);
    const Ints found = dot4<wide>(splat(round), load<Words>(codes), four);
    for (int i = 0; i < kLanes; ++i) {
      int wanted = round;
      for (int j = 0; j < 4; ++j) wanted += (codes[4 * i + j] - (wide && !kWideAsTheyAre ? 128 : 0)) * x[j];
      expect(wide ? "dot4<wide>" : "dot4", static_cast<float>(found[i]), static_cast<float>(wanted));
    }
  }
}

}  // namespace

int main() {
  check_halves();
  check_floats();
  check_transpose();
  check_look_up();
  check_dot<false>();
  check_dot<true>();
  for (bitsmith::Isa isa : bitsmith::available_isas()) std::printf("%s\n", bitsmith::isa_name(isa));
  return failures > 0;
}
