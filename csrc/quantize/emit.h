// One ggml block of a row: its nearest codes, what they lose, and the packed bytes.
#pragma once

#include "one_level.h"
#include "pack.h"

namespace bitsmith::quantize::BITSMITH_ISA {

// Sums of squares in sixteen running sums by column: the order of `sum_of_squares` in pipeline/encode.py.
class SquareSum {
 public:
  // Column `at` of a row and those beside it; columns before are done.
  BITSMITH_INLINE void add(int at, Floats a) {
    const Doubles wide = convert<Doubles>(a);
    sums_[at / kLanes % (16 / kLanes)] += wide * wide;
  }

  double total() const {
    double sums[16];
    std::memcpy(sums, sums_, sizeof sums);
    for (int half = 8; half; half /= 2) {
      for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    return sums[0];
  }

 private:
  Doubles sums_[16 / kLanes] = {};
};

struct Lost {
  SquareSum error, weight;
};

// What a type's grid is: its levels, whether it has an offset.
template <class L, bool Offset>
struct GridOf {
  using Levels = L;
  static constexpr bool kOffset = Offset;
};

// clang-format off
template <Type T> struct TypeGrid;
template <> struct TypeGrid<Type::q8_0> : GridOf<Integers<-128, 127>, false> {};
template <> struct TypeGrid<Type::q4_0> : GridOf<Integers<-8, 7>, false> {};
template <> struct TypeGrid<Type::q4_1> : GridOf<Integers<0, 15>, true> {};
template <> struct TypeGrid<Type::q5_0> : GridOf<Integers<-16, 15>, false> {};
template <> struct TypeGrid<Type::q5_1> : GridOf<Integers<0, 31>, true> {};
template <> struct TypeGrid<Type::iq4_nl> : GridOf<Iq4, false> {};
template <> struct TypeGrid<Type::mxfp4> : GridOf<E2m1, false> {};
template <> struct TypeGrid<Type::nvfp4> : GridOf<E2m1, false> {};
template <> struct TypeGrid<Type::q2_k> : GridOf<Integers<0, 3>, true> {};
template <> struct TypeGrid<Type::q3_k> : GridOf<Integers<-4, 3>, false> {};
template <> struct TypeGrid<Type::q4_k> : GridOf<Integers<0, 15>, true> {};
template <> struct TypeGrid<Type::q5_k> : GridOf<Integers<0, 31>, true> {};
template <> struct TypeGrid<Type::q6_k> : GridOf<Integers<-32, 31>, false> {};
template <> struct TypeGrid<Type::iq4_xs> : GridOf<Iq4, false> {};
template <> struct TypeGrid<Type::q1_0> : GridOf<Signs, false> {};
template <> struct TypeGrid<Type::q2_0> : GridOf<Integers<-1, 2>, false> {};
template <> struct TypeGrid<Type::tq1_0> : GridOf<Integers<-1, 1>, false> {};
template <> struct TypeGrid<Type::tq2_0> : GridOf<Integers<-1, 1>, false> {};
// clang-format on

constexpr bool is_micro(Type type) { return type == Type::mxfp4 || type == Type::nvfp4; }
constexpr bool is_two_level(Type type) { return facts(type).group > facts(type).block; }

// The scale that a block's weights are divided by, and the offset.
struct Grid {
  float scale, offset;
};

template <Type T>
Grid grid_of(const Search &search, const Chosen &chosen, int lane, int part) {
  if constexpr (is_micro(T)) {
    return {search.scales[static_cast<int>(chosen.scales[part][lane])], 0};
  } else if constexpr (is_two_level(T)) {
    return {chosen.d[lane] * chosen.scales[part][lane], -(chosen.m[lane] * chosen.mins[part][lane])};
  } else {
    return {chosen.d[lane], chosen.m[lane]};
  }
}

template <Type T>
Stored stored(const Chosen &chosen, int lane) {
  Stored p;
  if constexpr (!is_micro(T)) {
    p.d = f16_bits(chosen.d[lane]);
    p.m = f16_bits(chosen.m[lane]);
  }
  if constexpr (is_micro(T) || is_two_level(T)) {
    for (int part = 0; part < facts(T).group / facts(T).block; ++part) {
      p.scales[part] = static_cast<int8_t>(static_cast<int>(chosen.scales[part][lane]));
      p.mins[part] = static_cast<uint8_t>(chosen.mins[part][lane]);
    }
  }
  return p;
}

BITSMITH_INLINE void put_codes(uint8_t *code, Ints codes) {
  const Bytes bytes = convert<Bytes>(codes);
  std::memcpy(code, &bytes, sizeof bytes);
}

// w: [group]; the group's parameters are those of `lane`
template <Type T>
void emit(const Search &search, const Chosen &chosen, int lane, const float *w, uint8_t *out, Lost &lost) {
  using G = TypeGrid<T>;
  constexpr int kGroup = facts(T).group, kBlock = facts(T).block;
  alignas(64) uint8_t code[kGroup];
  for (int part = 0; part < kGroup / kBlock; ++part) {
    const Grid grid = grid_of<T>(search, chosen, lane, part);
    const Floats divisor = splat(grid.scale != 0 ? grid.scale : __builtin_inff());
    for (int i = part * kBlock; i < (part + 1) * kBlock; i += kLanes) {
      const Floats x = load<Floats>(w + i);
      const Ints codes = G::Levels::code((G::kOffset ? x - grid.offset : x) / divisor);
      put_codes(code + i, codes);
      const Floats product = G::Levels::level(codes) * grid.scale;
      lost.error.add(i, (G::kOffset ? product + grid.offset : product) - x);
      lost.weight.add(i, x);
    }
  }
  pack<T>(out, code, stored<T>(chosen, lane));
}

// Truncate targets >= 0 to codes; what is not finite becomes 0.
template <int Top>
BITSMITH_INLINE Ints truncated(Floats t) {
  t = absolute(t) < __builtin_inff() ? t : Floats{};
  return convert<Ints>(clip(t, 0, Top));
}

// Codes from the unrounded scale, values from the stored one.
template <Type T>
void emit_reference(const Chosen &chosen, int lane, const float *w, uint8_t *out, Lost &lost) {
  using G = TypeGrid<T>;
  alignas(64) uint8_t code[32];
  const float d = chosen.d[lane], low = chosen.m[lane], inverted = d != 0 ? 1.0f / d : 0.0f;
  const Floats kept = f16(Floats{d, low});
  Stored p;
  p.d = f16_bits(kept[0]);
  p.m = f16_bits(kept[1]);
  for (int i = 0; i < 32; i += kLanes) {
    const Floats x = load<Floats>(w + i);
    Ints codes;
    if constexpr (T == Type::q8_0) {
      Floats t = x * inverted;
      t = absolute(t) < __builtin_inff() ? t : Floats{};
      const Floats whole = convert<Floats>(convert<Ints>(t));
      const Floats away = as<Floats>(as<Ints>(splat(1.0f)) | (as<Ints>(t) & INT32_MIN));
      codes = truncated<255>(whole + (absolute(t - whole) >= 0.5f ? away : Floats{}) + 128.0f);
    } else if constexpr (G::kOffset) {
      constexpr int kTop = T == Type::q4_1 ? 15 : 31;
      codes = truncated<kTop>((x - low) * inverted + 0.5f);
    } else {
      constexpr int kHalf = T == Type::q4_0 ? 8 : 16;
      codes = truncated<2 * kHalf - 1>(x * inverted + (kHalf + 0.5f));
    }
    put_codes(code + i, codes);
    const Floats product = G::Levels::level(codes) * kept[0];
    lost.error.add(i, (G::kOffset ? product + kept[1] : product) - x);
    lost.weight.add(i, x);
  }
  pack<T>(out, code, p);
}

}  // namespace bitsmith::quantize::BITSMITH_ISA
