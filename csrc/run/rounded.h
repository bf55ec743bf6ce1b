// Inputs of products, rounded as the products want them.
#pragma once

#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "mixed.h"

namespace bitsmith {

// What products want of their input. single: rows at the front that must give what each gives alone. fine: rows at the
// front that are rounded to 15 bits. Those behind `single` as blocks of int8, or as bfloat16 by rows or for tiles;
// `rest`: also what tiles lost. With a threshold also what LLM.int8() makes of all; `values`: as floats, too.
struct Roundings {
  int single = 0, fine = 0;
  bool blocks = false, bfloats = false, tiles = false, rest = false, values = false;
  float threshold = kNotMixed;
};

// Rounded rows and the memory they lie in. Rows come in groups: those of a group are multiplied together.
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
    const size_t others = rows - wanted.single;
    fine_used_ += wanted.fine * block_stride(), sums_used_ += wanted.fine * sum_stride();
    if (wanted.blocks) blocks_used_ += others * block_stride();
    if (wanted.bfloats) bfloats_used_ += others * cols_;
    if (wanted.tiles) {
      tiles_used_ += (others + kTileRows - 1) / kTileRows * kTileRows * tiled_cols();
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
    if (i < to.wanted.fine)
      kernels.round_fine(x, cols_, fine_.data() + to.fine + i * block_stride(),
                         sums_.data() + to.sums + i * sum_stride());
    const int other = i - to.wanted.single;
    if (other < 0) return;
    if (to.wanted.bfloats)
      kernels.to_bfloat(x, cols_, bfloats_.data() + to.bfloats + static_cast<size_t>(other) * cols_);
    if (to.wanted.tiles)
      kernels.to_tiles(x, cols_, other, tiled_cols(), upper_.data() + to.tiles,
                       to.wanted.rest ? lower_.data() + to.tiles : nullptr);
    if (to.wanted.blocks) kernels.round_row(x, cols_, blocks_.data() + to.blocks + other * block_stride());
  }

  int cols() const { return cols_; }
  int single(int group) const { return groups_[group].wanted.single; }
  FineRows fine(int group) const {
    return {fine_.data() + groups_[group].fine, sums_.data() + groups_[group].sums, block_stride(), sum_stride()};
  }
  // Those behind the first `single` rows, as the other two.
  RoundedRows blocks(int group) const { return {blocks_.data() + groups_[group].blocks, cols_}; }
  TiledRows tiles(int group) const {
    const Group &of = groups_[group];
    return {upper_.data() + of.tiles, of.wanted.rest ? lower_.data() + of.tiles : nullptr, of.rows - of.wanted.single,
            tiled_cols()};
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

  size_t block_stride() const { return static_cast<size_t>(cols_) / 32; }
  size_t sum_stride() const { return static_cast<size_t>(cols_) / 256 + 1; }
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
