#include "isa.h"

#include <cstdlib>
#include <stdexcept>

namespace bitsmith {

const char *isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::avx512vnni: return "avx512vnni";
    case Isa::avx512bf16: return "avx512bf16";
    default: return "generic";
  }
}

std::vector<Isa> available_isas() {
  std::vector<Isa> found{Isa::generic};
#ifdef BITSMITH_HAS_avx2
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (avx2) found.push_back(Isa::avx2);
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) found.push_back(Isa::avx512);
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (vnni) found.push_back(Isa::avx512vnni);
  if (vnni && __builtin_cpu_supports("avx512bf16")) found.push_back(Isa::avx512bf16);
#endif
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
