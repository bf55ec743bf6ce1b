#include "mapping.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>

namespace bitsmith {
namespace {

// A signal handler finds nothing but what has a fixed place.
constexpr int kSlots = 4096;  // files mapped at one time; further ones are not guarded
struct Slot {
  std::atomic<uintptr_t> begin{0}, end{0};  // `begin` 0: free
  std::atomic<bool> lost{false};
};
Slot slots[kSlots];
std::mutex slots_mutex;
uintptr_t page_size = 4096;
struct sigaction previous;

void pass_on(int signal, siginfo_t *info, void *context) {
  if (previous.sa_flags & SA_SIGINFO) {
    previous.sa_sigaction(signal, info, context);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(signal);
  } else {  // the access is made again, and the signal ends the process as it would have
    ::signal(signal, SIG_DFL);
  }
}

void on_bus_error(int signal, siginfo_t *info, void *context) {
  const int error = errno;
  const auto at = reinterpret_cast<uintptr_t>(info->si_addr);
  for (Slot &slot : slots) {
    const uintptr_t begin = slot.begin.load(), end = slot.end.load();
    if (begin == 0 || at < begin || at >= end) continue;
    const uintptr_t page = at - at % page_size;
    void *zeros =
        mmap(reinterpret_cast<void *>(page), end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (zeros == MAP_FAILED) break;
    slot.lost.store(true);
    errno = error;
    return;
  }
  errno = error;
  pass_on(signal, info, context);
}

// Called under the mutex.
void install_handler() {
  static bool installed = false;
  if (installed) return;
  page_size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  struct sigaction action{};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  installed = sigaction(SIGBUS, &action, &previous) == 0;
}

int take_slot(uintptr_t begin, uintptr_t end) {
  const std::lock_guard<std::mutex> lock(slots_mutex);
  install_handler();
  for (int i = 0; i < kSlots; ++i) {
    if (slots[i].begin.load() != 0) continue;
    slots[i].lost.store(false);
    slots[i].end.store(end);
    slots[i].begin.store(begin);
    return i;
  }
  return -1;
}

}  // namespace

Mapping::Mapping(int descriptor, size_t size) : data_(nullptr), size_(size), slot_(-1) {
  void *mapped = mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
  if (mapped == MAP_FAILED) throw std::runtime_error(std::string("the file cannot be mapped: ") + std::strerror(errno));
  data_ = static_cast<const uint8_t *>(mapped);
  const auto begin = reinterpret_cast<uintptr_t>(mapped);
  slot_ = take_slot(begin, begin + size);
}

Mapping::~Mapping() {
  if (slot_ >= 0) {
    const std::lock_guard<std::mutex> lock(slots_mutex);
    slots[slot_].begin.store(0);
  }
  munmap(const_cast<uint8_t *>(data_), size_);
}

bool Mapping::lost() const { return slot_ >= 0 && slots[slot_].lost.load(); }

}  // namespace bitsmith
