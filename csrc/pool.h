// A few threads that share the pieces of one loop at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace bitsmith {

// The caller works too. Idle workers spin for some microseconds before they sleep, as loops of a forward pass follow
// each other closely. Pieces are claimed one at a time, so that a worker whose core is busy elsewhere delays one only.
// Where the system gives fewer threads than were asked for, those do. A forked child has none and works alone; one that
// is forked while a loop runs must not use the pool.
// One loop at a time: `run` is not to be called from two threads, nor from within a piece.
class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool &) = delete;
  Pool &operator=(const Pool &) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Call body(piece) for 0 <= piece < pieces, each once, in any order. Where pieces throw, the others are called all
  // the same, and the first exception is thrown again.
  template <class Body>
  void run(int pieces, const Body &body) {
    if (pieces <= 0) return;
    if (pieces == 1 || workers_.empty()) {
      for (int piece = 0; piece < pieces; ++piece) body(piece);
      return;
    }
    constexpr int kMost = 65535;  // that a ticket counts
    for (int first = 0; first < pieces; first += kMost) {
      const auto part = [&](int piece) { body(first + piece); };
      using Part = decltype(part);
      share(
          pieces - first < kMost ? pieces - first : kMost,
          [](const void *context, int piece) { (*static_cast<const Part *>(context))(piece); }, &part);
    }
  }

 private:
  using Call = void (*)(const void *context, int piece);

  void share(int pieces, Call body, const void *context);
  void work();
  bool claim(uint32_t loop, int &piece);
  void call(Call body, const void *context, int piece);

  std::vector<std::thread> workers_;
  alignas(64) std::atomic<uint64_t> ticket_{0};  // loop number << 32 | pieces << 16 | next piece
  alignas(64) std::atomic<int> done_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stopping_{false};
  Call call_ = nullptr;
  const void *context_ = nullptr;
  std::mutex mutex_;
  std::exception_ptr failure_;                                   // the first of a loop
  std::condition_variable *wake_ = new std::condition_variable;  // a forked child leaves it: its sleepers are not there
  int process_;
};

}  // namespace bitsmith
