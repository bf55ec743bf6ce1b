// Inputs of products, rounded as the products want them.
#pragma once

#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "mixed.h"

namespace bitsmith {

// What products want of their input: blocks of int8, bfloat16 by rows or for tiles; `rest`: also what blocks or tiles
// lost. With a threshold also what LLM.int8() makes of it; `values`: as floats, too.
struct Roundings {
  bool blocks = false, bfloats = false, tiles = false, rest = false, values = false;
  float threshold = kNotMixed;
};

constexpr int kFineRows = 3;  // groups of so many rows at most are multiplied row by row

// Rounded rows and the memory they lie in. Rows come in groups: those of a group are multiplied together. The rows of
// small groups are rounded to 15 bits where others are rounded to blocks of int8, so that each gives what it gives
// alone.
class RoundedBuffer {
 public:
  // Forget everything; rows of `cols` follow.
  void start(int cols) {
    cols_ = cols;
    groups_.clear();
    blocks_used_ = fine_used_ = sums_used_ = bfloats_used_ = tiles_used_ = 0;
    lower_wanted_ = false;
    mixed_used_ = 0;
  }
  // One more group. Returns its number.
  int add(Roundings wanted, int rows) {
    groups_.push_back({wanted, rows, blocks_used_, fine_used_, sums_used_, bfloats_used_, tiles_used_, mixed_used_});
    if (wanted.threshold != kNotMixed) {
      if (mixed_.size() == mixed_used_) mixed_.emplace_back();
      mixed_[mixed_used_++].start(cols_, rows, wanted.threshold, wanted.values);
    }
    const size_t length = cols_ / 32;
    if (wanted.blocks && rows <= kFineRows) fine_used_ += rows * length, sums_used_ += rows * (length / 8 + 1);
    if (wanted.blocks && rows > kFineRows) blocks_used_ += rows * length * (wanted.rest ? 2 : 1);
    if (wanted.bfloats) bfloats_used_ += static_cast<size_t>(rows) * cols_;
    if (wanted.tiles) {
      tiles_used_ += static_cast<size_t>((rows + kTileRows - 1) / kTileRows) * kTileRows * tiled_cols();
      lower_wanted_ |= wanted.rest;
    }
    return static_cast<int>(groups_.size()) - 1;
  }
  // Make room for all groups.
  void reserve() {
    const auto grow = [](auto &buffer, size_t size) {
      if (buffer.size() < size) buffer.resize(size);
    };
    grow(blocks_, blocks_used_);
    grow(fine_, fine_used_);
    grow(sums_, sums_used_);
    grow(bfloats_, bfloats_used_);
    upper_.resize(tiles_used_);
    if (lower_wanted_) lower_.resize(tiles_used_);
  }
  // Round row i of a group.
  void round(const Kernels &kernels, int group, int i, const float *x) {
    const Group &to = groups_[group];
    if (to.wanted.threshold != kNotMixed) mixed_[to.mixed].round(kernels, i, x);
    if (to.wanted.bfloats) kernels.to_bfloat(x, cols_, bfloats_.data() + to.bfloats + static_cast<size_t>(i) * cols_);
    if (to.wanted.tiles)
      kernels.to_tiles(x, cols_, i, tiled_cols(), upper_.data() + to.tiles,
                       to.wanted.rest ? lower_.data() + to.tiles : nullptr);
    if (!to.wanted.blocks) return;
    if (to.rows > kFineRows) return round_blocks(kernels, to, i, x);
    kernels.round_fine(x, cols_, fine_.data() + fine_begin(group, i), sums_.data() + sums_begin(group, i));
  }

  int cols() const { return cols_; }
  // Behind them the rows of what their rounding lost, where that is wanted.
  RoundedRows rows(int group) const { return {blocks_.data() + groups_[group].blocks, cols_}; }
  FineRow fine(int group, int i) const {
    return {fine_.data() + fine_begin(group, i), sums_.data() + sums_begin(group, i)};
  }
  TiledRows tiles(int group) const {
    const Group &of = groups_[group];
    return {upper_.data() + of.tiles, of.wanted.rest ? lower_.data() + of.tiles : nullptr, of.rows, tiled_cols()};
  }
  MixedRows &mixed(int group) { return mixed_[groups_[group].mixed]; }
  const MixedRows &mixed(int group) const { return mixed_[groups_[group].mixed]; }
  BfloatRows bfloats(int group) const { return {bfloats_.data() + groups_[group].bfloats, static_cast<size_t>(cols_)}; }

 private:
  struct Group {
    Roundings wanted;
    int rows;
    size_t blocks, fine, sums, bfloats, tiles, mixed;  // where they begin
  };

  size_t fine_begin(int group, int i) const { return groups_[group].fine + static_cast<size_t>(i) * (cols_ / 32); }
  size_t sums_begin(int group, int i) const {
    return groups_[group].sums + static_cast<size_t>(i) * (cols_ / 32 / 8 + 1);
  }
  void round_blocks(const Kernels &kernels, const Group &group, int i, const float *x) {
    const size_t length = cols_ / 32;
    RoundedBlock *to = blocks_.data() + group.blocks + i * length;
    kernels.round_row(x, cols_, to);
    if (!group.wanted.rest) return;
    static thread_local std::vector<float> lost;
    lost.resize(cols_);
    for (int k = 0; k < cols_; ++k) lost[k] = x[k] - to[k / 32].scale * static_cast<float>(to[k / 32].codes[k % 32]);
    kernels.round_row(lost.data(), cols_, to + group.rows * length);
  }

  int tiled_cols() const { return (cols_ + 31) / 32 * 32; }

  int cols_ = 0;
  bool lower_wanted_ = false;
  std::vector<Group> groups_;
  size_t blocks_used_ = 0, fine_used_ = 0, sums_used_ = 0, bfloats_used_ = 0, tiles_used_ = 0;
  Aligned<uint16_t> upper_, lower_;
  std::vector<RoundedBlock> blocks_;
  std::vector<FineBlock> fine_;
  std::vector<FineSums> sums_;
  std::vector<uint16_t> bfloats_;
  size_t mixed_used_ = 0;
  std::vector<MixedRows> mixed_;
};

}  // namespace bitsmith
