// Tiles of as many groups as there are lanes, through search, rounding and packing. Compiled for each instruction set.
#include "emit.h"
#include "read.h"

namespace bitsmith::quantize::BITSMITH_ISA {
namespace {

constexpr float kLargest = 1e15f;  // the search takes larger weights for this: LARGEST of scale_search.py

// Up to kLanes groups. rows: their weights, group by group. x, weight: lane i holds group i, as the search wants it.
template <int Group>
struct Tile {
  alignas(64) float rows[kLanes][Group];
  Floats x[Group], weight[Group];
  int count = 0;
};

// from [kLanes][Group] to lanes [Group]
template <int Group, class Change>
BITSMITH_INLINE void to_lanes(const float (&from)[kLanes][Group], Floats *to, const Change &change) {
  for (int at = 0; at < Group; at += kLanes) {
    Floats square[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) square[lane] = load<Floats>(&from[lane][at]);
    transpose(square);
    for (int i = 0; i < kLanes; ++i) to[at + i] = change(square[i]);
  }
}

template <Type T, bool W>
void choose(const Search &search, const Floats *x, const Floats *weight, Chosen &chosen) {
  if constexpr (T == Type::q8_0) {
    chosen.d = f16(largest_magnitude(x) / 127.0f);
  } else if constexpr (T == Type::q4_0) {
    choose_scale<Integers<-8, 7>, W>({x, weight}, search, chosen);
  } else if constexpr (T == Type::q5_0) {
    choose_scale<Integers<-16, 15>, W>({x, weight}, search, chosen);
  } else if constexpr (T == Type::iq4_nl) {
    choose_scale<Iq4, W>({x, weight}, search, chosen);
  } else if constexpr (T == Type::q4_1) {
    AffineBlocks<4, W>::choose({x, weight}, search, chosen);
  } else if constexpr (T == Type::q5_1) {
    AffineBlocks<5, W>::choose({x, weight}, search, chosen);
  } else if constexpr (is_micro(T)) {
    constexpr int N = facts(T).block;
    for (int part = 0; part < facts(T).group / N; ++part) {
      chosen.scales[part] = choose_byte<N, W>({x + part * N, weight + part * N}, search);
    }
  } else if constexpr (T == Type::q2_k) {
    AffineK<2, 16, 15, W>{x, weight, search}.choose(chosen);
  } else if constexpr (T == Type::q4_k) {
    AffineK<4, 32, 63, W>{x, weight, search}.choose(chosen);
  } else if constexpr (T == Type::q5_k) {
    AffineK<5, 32, 63, W>{x, weight, search}.choose(chosen);
  } else if constexpr (T == Type::q3_k) {
    SymmetricK<Integers<-4, 3>, 16, -32, 31, W>{x, weight, search}.choose(chosen);
  } else if constexpr (T == Type::q6_k) {
    SymmetricK<Integers<-32, 31>, 16, -128, 127, W>{x, weight, search}.choose(chosen);
  } else if constexpr (T == Type::q1_0) {
    choose_scale<Signs, W, 128>({x, weight}, search, chosen);
  } else if constexpr (T == Type::q2_0) {
    choose_scale<Integers<-1, 2>, W, 64>({x, weight}, search, chosen);
  } else if constexpr (T == Type::tq1_0 || T == Type::tq2_0) {
    choose_scale<Integers<-1, 1>, W, 256>({x, weight}, search, chosen);
  } else {
    static_assert(T == Type::iq4_xs);
    SymmetricK<Iq4, 32, -32, 31, W>{x, weight, search}.choose(chosen);
  }
}

// Calls done(tile, chosen, first group) for every tile of all groups in order; returns the largest magnitude.
template <Type T, class Done>
float by_tiles(const Search &search, const Weights &w, bool reference, const Done &done) {
  constexpr int kGroup = facts(T).group;
  const int64_t across = w.cols / kGroup, groups = w.rows * across;
  const int64_t row_bytes = w.cols * (w.type == Float::f32 ? 4 : 2);
  Tile<kGroup> tile = {};
  alignas(64) float columns[kLanes][kGroup] = {};
  Chosen chosen = {};
  Ints largest{};
  for (int64_t first = 0; first < groups; first += kLanes) {
    tile.count = static_cast<int>(groups - first < kLanes ? groups - first : kLanes);
    for (int lane = 0; lane < tile.count; ++lane) {
      const int64_t row = (first + lane) / across, at = (first + lane) % across * kGroup;
      const uint8_t *from = w.data + (w.order ? w.order[row] : row) * row_bytes + at * (row_bytes / w.cols);
      read_weights(tile.rows[lane], from, w.type, kGroup, largest);
      if (w.columns) std::memcpy(columns[lane], w.columns + at, sizeof columns[lane]);
    }
    if (reference) {
      to_lanes(tile.rows, tile.x, [](Floats x) { return x; });
      reference_scale(T, tile.x, chosen);
    } else {
      to_lanes(tile.rows, tile.x, [](Floats x) { return clip(x, -kLargest, kLargest) + 0.0f; });  // no -0
      if (w.columns) {
        to_lanes(columns, tile.weight, [](Floats x) { return x; });
        choose<T, true>(search, tile.x, tile.weight, chosen);
      } else {
        choose<T, false>(search, tile.x, tile.weight, chosen);
      }
    }
    done(tile, chosen, first);
  }
  int32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits = largest[lane] > bits ? largest[lane] : bits;
  float found;
  std::memcpy(&found, &bits, sizeof found);
  return found;
}

template <Type T>
void fit_type(const Search &search, const Weights &w, const Fitted &to) {
  by_tiles<T>(search, w, false, [&](const auto &tile, const Chosen &chosen, int64_t first) {
    constexpr int kParts = facts(T).group / facts(T).block;
    for (int lane = 0; lane < tile.count; ++lane) {
      const Stored p = stored<T>(chosen, lane);
      if (to.d) to.d[first + lane] = p.d;
      if (to.m) to.m[first + lane] = p.m;
      if (to.scales) std::memcpy(to.scales + (first + lane) * kParts, p.scales, kParts);
      if (to.mins) std::memcpy(to.mins + (first + lane) * kParts, p.mins, kParts);
    }
  });
}

template <Type T>
Tally encode_type(const Search &search, const Weights &w, [[maybe_unused]] bool reference, uint8_t *out) {
  constexpr bool kHasReference = T <= Type::q5_1;
  Lost lost;
  Tally tally;
  tally.largest =
      by_tiles<T>(search, w, kHasReference && reference, [&](const auto &tile, const Chosen &chosen, int64_t first) {
        for (int lane = 0; lane < tile.count; ++lane) {
          uint8_t *block = out + (first + lane) * facts(T).bytes;
          if constexpr (kHasReference) {
            if (reference) {
              emit_reference<T>(chosen, lane, tile.rows[lane], block, lost);
              continue;
            }
          }
          emit<T>(search, chosen, lane, tile.rows[lane], block, lost);
        }
      });
  tally.squared_error = lost.error.total();
  tally.squared_weight = lost.weight.total();
  return tally;
}

// `call<T>()` for the type of the search.
template <class Call, int... I>
auto dispatch(Type type, const Call &call, std::integer_sequence<int, I...>) {
  decltype(call.template operator()<Type::q8_0>()) (*const calls[])(const Call &) = {
    [](const Call &each) { return each.template operator()<static_cast<Type>(I)>(); }...
  };
  return calls[static_cast<int>(type)](call);
}

constexpr auto kAllTypes = std::make_integer_sequence<int, sizeof kTypes / sizeof kTypes[0]>();

struct FitCall {
  const Search &search;
  const Weights &w;
  const Fitted &to;
  template <Type T>
  void operator()() const {
    fit_type<T>(search, w, to);
  }
};

struct EncodeCall {
  const Search &search;
  const Weights &w;
  bool reference;
  uint8_t *out;
  template <Type T>
  Tally operator()() const {
    return encode_type<T>(search, w, reference, out);
  }
};

void fit(const Search &search, const Weights &w, const Fitted &to) {
  dispatch(search.type, FitCall{search, w, to}, kAllTypes);
}

Tally encode(const Search &search, const Weights &w, bool reference, uint8_t *out) {
  return dispatch(search.type, EncodeCall{search, w, reference, out}, kAllTypes);
}

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels{fit, encode};

}  // namespace bitsmith::quantize::BITSMITH_ISA
