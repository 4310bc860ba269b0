// Generalised advantage estimation on packed sequences (Schulman et al., arXiv:1506.02438).
#pragma once

#include <cstdint>

namespace areal_mega {

// All pointers are to contiguous memory of one device; T is float or double.
template <typename T>
struct GaeArguments {
    const T* rewards;           // [N]
    const T* values;            // [N], the critic's estimate before each token
    const int32_t* cu_seqlens;  // [B + 1], from 0 to N, never decreasing
    const bool* loss_mask;      // [N], or null: every token counts
    const T* bootstrap;         // [B], the value after each sequence's last valid token, or null: 0
    const T* lams;              // [B], lambda of each sequence's advantages, or null: lam
    T* advantages;              // [N]
    T* returns;                 // [N]
    int64_t sequences;          // B
    T gamma;
    T lam;
    T critic_lam;    // lambda of the returns, where
    bool decoupled;  // they have one of their own
};

}  // namespace areal_mega
