// What a block consists of: operations, each with its norms and a residual connection around it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cache.h"
#include "compute.h"

namespace bitsmith {

// Tokens for some slots of a cache: row i puts the first counts[i] of its n tokens behind the first starts[i] positions
// of slots[i].
struct Feed {
  const int64_t *tokens;  // [rows, n]
  int rows, n;
  const int64_t *slots, *starts, *counts;  // [rows] each; slots distinct, counts in 1..n
  int single;          // so many sequences at the front are computed as tokens are that come alone; -1: see `Pass`
  const float *table;  // [rows, n, layers * width], rows of a table of the embeddings of layers; null without
};

// The tokens of a forward pass without filler, sequence by sequence.
struct Pass {
  struct Sequence {
    int slot, start, count;  // positions start.. of its slot are new
    int first;               // row of its first token in the pass
  };

  // Where the feed does not say which tokens are computed as if each came alone: all, if they are few; else those of
  // the sequences of one token at the front.
  Pass(const Feed &feed, Cache &cache);
  int rows() const { return static_cast<int>(sequence_of.size()); }

  Cache &cache;
  std::vector<Sequence> sequences;
  std::vector<int> sequence_of;  // [rows]
  int single = 0;                // sequences at the front whose tokens are computed as if each came alone
  // Rows of those.
  int single_rows() const { return single == static_cast<int>(sequences.size()) ? rows() : sequences[single].first; }
  int stop = 0;                   // the positions of all sequences end before it
  float *layer_inputs = nullptr;  // [rows, input_stride], embeddings of layers one behind the other
  size_t input_stride = 0;
};

// An operation. It keeps nothing of a sequence: what it remembers lies in the cache.
class Operation {
 public:
  virtual ~Operation() = default;
  // Throws std::invalid_argument if its matrices do not fit the width of hidden states.
  virtual void check(int hidden) const = 0;
  // The same for a cache.
  virtual void check(const Cache &) const {}
  // The linears that read its input, which comes rounded for them.
  virtual std::vector<const Linear *> inputs() const = 0;
  // x: [rows, hidden], group 0 of what `compute` has rounded. out: [rows, stride], without norm and residual.
  virtual void run(Compute &compute, Pass &pass, const Rows &x, float *out, size_t stride) const = 0;
};

// (x + norm(operation(norm(x)))) * scale; norms may be empty
struct Part {
  std::shared_ptr<Operation> operation;
  std::vector<float> before, after;
  float scale = 1.0f;
};

// Throws std::invalid_argument if a linear is not [rows, cols], or its bias not [rows].
void check_linear(const char *name, const Linear &linear, int rows, int cols);

}  // namespace bitsmith
