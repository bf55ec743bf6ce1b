#include "reading.h"

#include <algorithm>
#include <chrono>
#include <iterator>

namespace bitsmith {
namespace {

constexpr size_t kBytes = size_t{16} << 20;  // read for one measurement: a millisecond or less
constexpr size_t kMost = size_t{256} << 20;  // of the matrices
constexpr int kRounds = 5;
constexpr double kSeconds = 0.12;  // no further round is begun after them

// Products of one row with matrices, as Model::multiply takes them.
class Products {
 public:
  Products(int cols, const Kernels &kernels, Pool &pool)
      : kernels_(kernels), pool_(pool), x_(cols, 0.5f), blocks_(cols / 32 + 1), sums_(cols / 256 + 1) {
    kernels.round_fine(x_.data(), cols / 32 * 32, blocks_.data(), sums_.data());
  }

  void multiply(const Matrix &w, const Reading &reading) {
    const int panels = w.row_panels();
    pieces_.clear();
    for (int first = 0, n; first < panels; first += n) {
      n = std::min(next_piece(panels - first, pool_.threads()), panels - first);
      pieces_.push_back({first, n});
    }
    if (y_.size() < static_cast<size_t>(panels) * kPanelRows) y_.resize(static_cast<size_t>(panels) * kPanelRows);
    pool_.run(static_cast<int>(pieces_.size()), [&](int i) {
      const auto [first, count] = pieces_[i];
      const int row = first * kPanelRows, rows = std::min(count * kPanelRows, w.rows() - row);
      if (w.packed())
        kernels_.panels_row(w.panels(), first, count, {blocks_.data(), sums_.data()}, reading, y_.data() + row);
      else
        kernels_.floats_row(w.floats(), row, rows, x_.data(), reading, y_.data() + row);
    });
  }

 private:
  struct Piece {
    int first, count;  // groups of 16 rows
  };
  const Kernels &kernels_;
  Pool &pool_;
  std::vector<float> x_, y_;
  std::vector<FineBlock> blocks_;
  std::vector<FineSums> sums_;
  std::vector<Piece> pieces_;
};

}  // namespace

std::vector<double> reading_rates(const std::vector<std::shared_ptr<Matrix>> &matrices, Isa isa, Pool &pool) {
  std::vector<double> best(std::size(kReadings), 0.0);
  std::vector<const Matrix *> read;
  size_t bytes = 0;
  int cols = 0;
  for (const auto &matrix : matrices) {
    if (bytes > kMost) break;
    read.push_back(matrix.get());
    bytes += matrix->bytes();
    cols = std::max(cols, matrix->cols());
  }
  if (bytes == 0) return best;

  Products products(cols, kernels(isa), pool);
  double spent = 0;
  size_t next = 0;
  // Bytes a second of some matrices behind the last.
  const auto measure = [&](const Reading &reading, size_t wanted) {
    size_t done = 0;
    const auto start = std::chrono::steady_clock::now();
    while (done < wanted) {
      products.multiply(*read[next], reading);
      done += read[next]->bytes();
      next = (next + 1) % read.size();
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    spent += seconds.count();
    return static_cast<double>(done) / seconds.count();
  };
  measure(kReadings[0], bytes);  // mapped pages come in
  spent = 0;
  for (int round = 0; round < kRounds && spent < kSeconds; ++round)
    for (size_t i = 0; i < best.size(); ++i) best[i] = std::max(best[i], measure(kReadings[i], kBytes));
  return best;
}

}  // namespace bitsmith
