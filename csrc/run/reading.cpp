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
constexpr int kTask = 16;          // groups of 16 rows, so that a core that is busy elsewhere holds up little

struct Task {
  const Matrix *matrix;
  int first, count;  // groups of 16 rows
  size_t bytes() const { return static_cast<size_t>(count) * kPanelRows * matrix->row_bytes(); }
};

std::vector<Task> tasks_of(const std::vector<std::shared_ptr<Matrix>> &matrices) {
  std::vector<Task> tasks;
  size_t bytes = 0;
  for (const auto &matrix : matrices)
    for (int first = 0, panels = matrix->rows() / kPanelRows; first < panels && bytes < kMost; first += kTask) {
      tasks.push_back({matrix.get(), first, std::min(kTask, panels - first)});
      bytes += tasks.back().bytes();
    }
  return tasks;
}

}  // namespace

std::vector<double> reading_rates(const std::vector<std::shared_ptr<Matrix>> &matrices, Isa isa, Pool &pool) {
  const Kernels &kernels = bitsmith::kernels(isa);
  const std::vector<Task> tasks = tasks_of(matrices);
  std::vector<double> best(std::size(kReadings), 0.0);
  if (tasks.empty()) return best;
  int cols = 0;
  for (const auto &matrix : matrices) cols = std::max(cols, matrix->cols());
  const std::vector<float> x(cols, 0.5f);
  std::vector<FineBlock> blocks(cols / 32 + 1);
  std::vector<FineSums> sums(cols / 256 + 1);
  kernels.round_fine(x.data(), cols / 32 * 32, blocks.data(), sums.data());

  size_t next = 0;
  // Bytes a second of some tasks behind the last.
  double spent = 0;
  const auto measure = [&](const Reading &reading, size_t wanted) {
    const size_t begin = next;
    size_t bytes = 0;
    while (bytes < wanted && next < tasks.size()) bytes += tasks[next++].bytes();
    const size_t end = next;
    if (next == tasks.size()) next = 0;
    const auto start = std::chrono::steady_clock::now();
    pool.run(static_cast<int>(end - begin), [&](int i) {
      const Task &task = tasks[begin + i];
      alignas(64) float y[kTask * kPanelRows];
      if (task.matrix->packed())
        kernels.panels_row(task.matrix->panels(), task.first, task.count, {blocks.data(), sums.data()}, reading, y);
      else
        kernels.floats_row(task.matrix->floats(), task.first * kPanelRows, task.count * kPanelRows, x.data(), reading,
                           y);
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    spent += seconds.count();
    return static_cast<double>(bytes) / seconds.count();
  };
  measure(kReadings[0], kMost);  // mapped pages come in
  spent = 0;
  for (int round = 0; round < kRounds && spent < kSeconds; ++round)
    for (size_t i = 0; i < best.size(); ++i) best[i] = std::max(best[i], measure(kReadings[i], kBytes));
  return best;
}

}  // namespace bitsmith
