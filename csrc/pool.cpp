#include "pool.h"

#include <unistd.h>

#include <chrono>
#include <system_error>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bitsmith {
namespace {

constexpr auto kSpin = std::chrono::microseconds(100);

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spin until ready() holds; false where it took too long.
template <class Ready>
bool spin(const Ready &ready) {
  for (int i = 0; i < 256; ++i) {
    if (ready()) return true;
    pause();
  }
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() - start < kSpin);
  return false;
}

uint32_t loop_of(uint64_t ticket) { return static_cast<uint32_t>(ticket >> 32); }

}  // namespace

Pool::Pool(int threads) : process_(getpid()) {
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  } catch (const std::system_error &) {
  }
}

Pool::~Pool() {
  if (process_ != getpid()) {
    for (auto &worker : workers_) worker.detach();
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_->notify_all();
  for (auto &worker : workers_) worker.join();
  delete wake_;
}

bool Pool::claim(uint32_t loop, int &piece) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (loop_of(ticket) == loop) {
    const uint32_t next = ticket & 0xffff, pieces = (ticket >> 16) & 0xffff;
    if (next >= pieces) return false;
    if (ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) {
      piece = static_cast<int>(next);
      return true;
    }
  }
  return false;
}

void Pool::call(Call body, const void *context, int piece) {
  try {
    body(context, piece);
  } catch (...) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
  }
  done_.fetch_add(1, std::memory_order_acq_rel);
}

void Pool::share(int pieces, Call body, const void *context) {
  call_ = body;
  context_ = context;
  done_.store(0, std::memory_order_relaxed);
  const uint32_t loop = loop_of(ticket_.load(std::memory_order_relaxed)) + 1;
  // sequentially consistent, as is the check in `work`: either the sleeper sees the ticket or we see the sleeper
  ticket_.store(static_cast<uint64_t>(loop) << 32 | static_cast<uint64_t>(pieces) << 16);
  if (sleeping_.load() > 0) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }
    wake_->notify_all();
  }
  int piece;
  while (claim(loop, piece)) call(body, context, piece);
  const auto finished = [&] { return done_.load(std::memory_order_acquire) == pieces; };
  while (!spin(finished)) std::this_thread::yield();
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Pool::work() {
  uint32_t seen = 0;
  while (true) {
    const auto called = [&] { return loop_of(ticket_.load()) != seen || stopping_.load(); };
    if (!spin(called)) {
      std::unique_lock<std::mutex> lock(mutex_);
      sleeping_.fetch_add(1);
      wake_->wait(lock, called);
      sleeping_.fetch_sub(1);
    }
    if (stopping_.load()) return;
    seen = loop_of(ticket_.load(std::memory_order_acquire));
    int piece;
    while (claim(seen, piece)) call(call_, context_, piece);
  }
}

}  // namespace bitsmith
