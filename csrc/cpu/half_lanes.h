// Numbers of every type of half.h in memory, to and from vectors of the type that they are computed in. What becomes
// narrower is rounded to the nearest, ties to even.
#pragma once

#include "../half.h"
#include "lanes.h"

namespace areal_mega::AREAL_MEGA_ISA {
namespace {

template <typename T>
Vector<Compute<T>> read(const T* from) {
    return load(from);
}

template <typename T>
void write(T* to, Vector<Compute<T>> x) {
    store(to, x);
}

using Words = Vector<uint32_t>;
typedef uint16_t HalfWords __attribute__((vector_size(kVectorBytes / 2)));

// The compiler's own conversions take detours over narrower vectors.
inline Words load_words(const uint16_t* from) {
    HalfWords x;
    __builtin_memcpy(&x, from, sizeof x);
#if defined(__AVX512F__)
    return reinterpret_cast<Words>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(x)));
#elif defined(__AVX2__)
    return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(x)));
#else
    return __builtin_convertvector(x, Words);
#endif
}

// x < 2^16.
inline void store_words(uint16_t* to, Words x) {
#if defined(__AVX512F__)
    const HalfWords half = reinterpret_cast<HalfWords>(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(x)));
#elif defined(__AVX2__)
    const __m256i wide = reinterpret_cast<__m256i>(x);
    const HalfWords half =
        reinterpret_cast<HalfWords>(_mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
#else
    const HalfWords half = __builtin_convertvector(x, HalfWords);
#endif
    __builtin_memcpy(to, &half, sizeof half);
}

template <>
inline Vector<float> read(const BFloat16* from) {
    return reinterpret_cast<Vector<float>>(load_words(&from->bits) << 16);
}

template <>
inline void write(BFloat16* to, Vector<float> x) {
    const Words bits = reinterpret_cast<Words>(x);
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    store_words(&to->bits, x == x ? rounded : (bits >> 16) | 0x40);
}

#if defined(__AVX512F__)

template <>
inline Vector<float> read(const Float16* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

template <>
inline void write(Float16* to, Vector<float> x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

#elif defined(__F16C__)

template <>
inline Vector<float> read(const Float16* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

template <>
inline void write(Float16* to, Vector<float> x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

#else

// Exponent and mantissa at float's places, the exponent too small by 112: a product mends it, denormals included.
template <>
inline Vector<float> read(const Float16* from) {
    const Words half = load_words(&from->bits);
    const Words magnitude = (half & 0x7fff) << 13;
    const Words finite = reinterpret_cast<Words>(reinterpret_cast<Vector<float>>(magnitude) * 0x1p112f);
    const Words bits = magnitude < 0x0f800000 ? finite : magnitude | 0x7f800000;
    return reinterpret_cast<Vector<float>>(bits | (half & 0x8000) << 16);
}

// The unit in the last place of 1/2 is the smallest denormal of Float16: adding 1/2 rounds what becomes denormal.
template <>
inline void write(Float16* to, Vector<float> x) {
    const Words bits = reinterpret_cast<Words>(x), magnitude = bits & 0x7fffffff;
    const Words normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const Words denormal = reinterpret_cast<Words>(reinterpret_cast<Vector<float>>(magnitude) + 0.5f) - 0x3f000000;
    const Words finite = magnitude < 0x38800000 ? denormal : normal;
    const Words special = magnitude > 0x7f800000 ? Words{} + 0x7e00 : Words{} + 0x7c00;
    store_words(&to->bits, (magnitude < 0x477ff000 ? finite : special) | (bits >> 16 & 0x8000));
}

#endif

}  // namespace
}  // namespace areal_mega::AREAL_MEGA_ISA
