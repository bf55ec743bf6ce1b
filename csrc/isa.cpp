#include "isa.h"

#include <cstdlib>
#include <stdexcept>

#include "isas.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace bitsmith {
namespace {

#if defined(__aarch64__)
// Whether the processor multiplies signed bytes and adds four products at once.
bool has_dot_product() {
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP, which old headers do not name
  return getauxval(AT_HWCAP) & kDotProduct;
#elif defined(__APPLE__)
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) == 0 && value;
#else
  return false;
#endif
}
#endif

#if defined(__x86_64__) && defined(__linux__)
// Whether the processor multiplies tiles of bfloat16, and the system lets this process use them. Linux must be asked.
bool has_tiles() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBfloat = 1u << 22, kTile = 1u << 24;
  if ((d & kBfloat) == 0 || (d & kTile) == 0) return false;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
#elif defined(__x86_64__)
bool has_tiles() { return false; }
#endif

#if defined(__x86_64__)
bool has_avx_vnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}
#endif

bool runs_here(Isa isa) {
  if (isa == Isa::generic) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (isa == Isa::avxvnni) runs = runs && has_avx_vnni();
  if (isa >= Isa::avx512)
    runs = runs && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa >= Isa::avx512vnni) runs = runs && __builtin_cpu_supports("avx512vnni");
  if (isa >= Isa::avx512bf16)
    runs = runs && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
  if (isa >= Isa::amx) runs = runs && has_tiles();
  return runs && isa != Isa::dotprod;
#elif defined(__aarch64__)
  return isa == Isa::dotprod && has_dot_product();
#else
  return false;
#endif
}

}  // namespace

const char *isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2: return "avx2";
    case Isa::avxvnni: return "avxvnni";
    case Isa::avx512: return "avx512";
    case Isa::avx512vnni: return "avx512vnni";
    case Isa::avx512bf16: return "avx512bf16";
    case Isa::amx: return "amx";
    case Isa::dotprod: return "dotprod";
    default: return "generic";
  }
}

std::vector<Isa> available_isas() {
  std::vector<Isa> found;
  for (Isa isa : {
#define BITSMITH_ENTRY(isa) Isa::isa,
           BITSMITH_ISAS(BITSMITH_ENTRY)
#undef BITSMITH_ENTRY
       })
    if (runs_here(isa)) found.push_back(isa);
  return found;
}

Isa isa_named(const std::string &name) {
  std::string known;
  for (Isa isa : available_isas()) {
    if (name == isa_name(isa)) return isa;
    known += known.empty() ? "" : ", ";
    known += isa_name(isa);
  }
  throw std::invalid_argument("instruction set '" + name + "' is not available here; available are " + known + ".");
}

Isa chosen_isa() {
  static const Isa chosen = [] {
    const char *wanted = std::getenv("BITSMITH_ISA");
    return wanted && *wanted ? isa_named(wanted) : available_isas().back();
  }();
  return chosen;
}

}  // namespace bitsmith
