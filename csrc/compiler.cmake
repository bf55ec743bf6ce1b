# Asks the compiler what it can do. A compiler that cannot build the core ends the build with a message that says what
# to do. ISAS becomes the list of instruction sets, FLAGS_<isa> the flags of each. The code (isa.h) and the environment
# variable BITSMITH_ISA know them by the same names.
include(CheckCXXSourceCompiles)

set(NEEDED "GCC 9, Clang 11 or Apple Clang 13, or newer")
set(CURE "Install one of them. If one is there under another name, give the name: CXX=g++-12 pip install -v\
 --force-reinstall --no-deps --no-cache-dir . bitsmith works without the core too, but slower.")
set(FOUND "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} (${CMAKE_CXX_COMPILER})")
if(NOT CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang" OR CMAKE_CXX_SIMULATE_ID STREQUAL "MSVC")
  message(FATAL_ERROR "bitsmith's C++ core needs ${NEEDED}; found ${FOUND}. ${CURE}")
endif()

# Whether a program compiles with these flags. It is not linked, so that this works with cross compilers too.
function(compiles result flags program)
  set(CMAKE_REQUIRED_FLAGS "${CMAKE_REQUIRED_FLAGS} ${flags}")
  set(CMAKE_REQUIRED_QUIET ON)
  set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
  check_cxx_source_compiles("${program}" ${result})
  set(${result} "${${result}}" PARENT_SCOPE)
endfunction()

# C++17, and what vectors.h does with vectors: choosing by lanes, converting, picking lanes
compiles(HAS_VECTORS "" "
  #include <atomic>
  #include <optional>
  #include <string_view>
  typedef float F __attribute__((vector_size(16)));
  typedef int I __attribute__((vector_size(16)));
  typedef unsigned char B __attribute__((vector_size(4)));
  template <class To, class From> To convert(From v) {
    if constexpr (sizeof(To) == sizeof(From)) return reinterpret_cast<To>(v);
    else return __builtin_convertvector(v, To);
  }
  struct Pair { F a, b; };
  F larger(F x, F y) {
    const auto [a, b] = Pair{x, y};
    const I better = a > b;
  #if defined(__clang__) || __GNUC__ >= 12
    const F swapped = __builtin_shufflevector(a, b, 4, 5, 0, 1);
  #else
    const F swapped = __builtin_shuffle(a, b, I{4, 5, 0, 1});
  #endif
    return better ? a + 1.0f : swapped;
  }
  B narrow(I x) { return convert<B>(x); }
")
if(NOT HAS_VECTORS)
  message(FATAL_ERROR "bitsmith's C++ core needs ${NEEDED}; found ${FOUND}, which cannot compile it. ${CURE}")
endif()

set(ISAS generic)
set(FLAGS_generic "")

# Adds an instruction set, if the compiler and its assembler know it.
macro(add_isa name flags program)
  string(TOUPPER HAS_${name} known)
  compiles(${known} "${flags}" "${program}")
  if(${known})
    list(APPEND ISAS ${name})
    separate_arguments(FLAGS_${name} UNIX_COMMAND "${flags}")
  else()
    message(WARNING "${FOUND} cannot compile ${name}. bitsmith's C++ core is built without it, and is slower on "
                    "processors that have it. Install a newer compiler to have it.")
  endif()
endmacro()

set(PROCESSOR "${CMAKE_SYSTEM_PROCESSOR}")
if(APPLE AND CMAKE_OSX_ARCHITECTURES)
  set(PROCESSOR "${CMAKE_OSX_ARCHITECTURES}")
endif()
if(PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(AVX2 "-mavx2 -mfma -mf16c -mbmi2")
  set(AVX512 "${AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512")
  set(VNNI "${AVX512} -mavx512vnni")
  add_isa(avx2 "${AVX2}" "
    #include <immintrin.h>
    __m256 f(__m128i a) { return _mm256_fmadd_ps(_mm256_cvtph_ps(a), _mm256_setzero_ps(), _mm256_setzero_ps()); }")
  add_isa(avxvnni "${AVX2} -mavxvnni" "
    #include <immintrin.h>
    __m256i f(__m256i a) { return _mm256_dpbusd_avx_epi32(a, a, a); }")
  add_isa(avx512 "${AVX512}" "
    #include <immintrin.h>
    float f(__m512i a, __m256i b) { return _mm512_reduce_add_ps(_mm512_permutexvar_ps(a, _mm512_cvtph_ps(b))); }
    __m512i g(__m512i a) { return _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(a), _mm512_setzero_si512(), a); }")
  add_isa(avx512vnni "${VNNI}" "
    #include <immintrin.h>
    __m512i f(__m512i a) { return _mm512_dpbusd_epi32(a, a, a); }")
  add_isa(avx512bf16 "${VNNI} -mavx512vbmi -mavx512bf16" "
    #include <immintrin.h>
    __m512i h(__m512i a) { return _mm512_permutex2var_epi8(a, a, a); }
    __m512 f(__m512 a, __m512bh b) { return _mm512_dpbf16_ps(a, b, b); }
    __m256bh g(__m512 a) { return _mm512_cvtneps_pbh(a); }")
  add_isa(amx "${VNNI} -mavx512vbmi -mavx512bf16 -mamx-tile -mamx-bf16" "
    #include <immintrin.h>
    void f(void *p) { _tile_loadconfig(p); _tile_loadd(1, p, 64); _tile_dpbf16ps(0, 1, 2); _tile_release(); }")
elseif(PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  add_isa(dotprod "-march=armv8.2-a+dotprod" "
    #include <arm_neon.h>
    int32x4_t f(int32x4_t a, int8x16_t b) { return vdotq_s32(a, b, b); }")
endif()
