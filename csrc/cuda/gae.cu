// Packed GAE on a GPU, in two launches: what each stretch of a long sequence does to what comes from its right, then
// all results. The second launch reads the tokens again, from the cache; in return no warp ever waits for another, and
// there are no flags to clear before and no order of arrival on which a rounding could depend.
//
// A warp has a stretch of one sequence. Stretches are counted from the sequence's end, and so is everything within
// them: in which order numbers are added depends on the sequence alone, not on its neighbours or its place in the
// batch.
//
// A stretch is taken a tile at a time, from right to left. A lane has a chunk of neighbouring tokens of the tile.
#include "../gae_scan.h"
#include "gae.h"
#include "launch.h"
#include "warp.h"

namespace areal_mega {
namespace {

constexpr int kChunk = 8;
constexpr int kTile = kWarp * kChunk;

// The tokens of a stretch. Shorter ones would be more to combine for each stretch of a sequence of a million tokens,
// longer ones more turns of the loop for a warp while others are idle.
constexpr int kStretch = 4 * kTile;

// A tile in shared memory, with a gap after each chunk so that 32 lanes find their chunks in different banks.
constexpr int kStaged = kTile + kWarp;

__device__ constexpr int staged(int token) { return token + token / kChunk; }

// Sequence i has the stretches from first_stretch(i) on, as many as it is long, and at most one number is left over
// before those of the next: so a warp finds its work from cu_seqlens alone.
__host__ __device__ constexpr int64_t first_stretch(int64_t begin, int64_t sequence) {
    return begin / kStretch + sequence;
}

struct Stretch {
    int64_t sequence;
    int64_t later;       // stretches of the sequence to the right; negative: no such stretch
    int64_t begin, end;  // tokens
    bool continues;      // to the left
};

template <typename T>
__device__ Stretch stretch_of(const GaeArguments<T>& x, int64_t index) {
    const int64_t sequence =
        last_at_most(x.sequences, index, [&](int64_t i) { return first_stretch(x.cu_seqlens[i], i); });
    const int64_t begin = x.cu_seqlens[sequence], end = x.cu_seqlens[sequence + 1];
    const int64_t stretches = (end - begin + kStretch - 1) / kStretch;
    const int64_t later = stretches - 1 - (index - first_stretch(begin, sequence));
    const int64_t own_end = end - later * kStretch, own_begin = own_end - kStretch;
    return {sequence, later, own_begin > begin ? own_begin : begin, own_end, own_begin > begin};
}

// c = gamma lambda for each lambda of a sequence.
template <typename T, int kLambdas>
struct Decays {
    T c[kLambdas];
};

template <typename T, int kLambdas>
__device__ Decays<T, kLambdas> decays_of(const GaeArguments<T>& x, int64_t sequence) {
    Decays<T, kLambdas> decays;
    decays.c[kLambdas - 1] = x.gamma * x.critic_lam;
    decays.c[0] = x.gamma * (x.lams ? x.lams[sequence] : x.lam);
    return decays;
}

// What a lane reads of the tile that ends before `end`, so that neighbouring lanes read neighbouring tokens.
template <typename T>
struct Tile {
    T rewards[kChunk], values[kChunk];
    bool valid[kChunk];
};

template <typename T>
__device__ Tile<T> load(const GaeArguments<T>& x, int64_t begin, int64_t end) {
    Tile<T> tile;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
        const int64_t t = end - kTile + i * kWarp + lane_index();
        const bool inside = t >= begin;
        tile.rewards[i] = inside ? x.rewards[t] : 0;
        tile.values[i] = inside ? x.values[t] : 0;
        tile.valid[i] = inside && (!x.loss_mask || x.loss_mask[t]);
    }
    return tile;
}

// A lane's own tokens.
template <typename T>
struct Chunk {
    T rewards[kChunk], values[kChunk];
    unsigned valid;  // bit i: token i
};

// From what the lanes have read to what they own.
template <typename T>
__device__ Chunk<T> own_chunk(const Tile<T>& tile, T (&shared)[2][kStaged]) {
    const int lane = lane_index();
    unsigned word = 0;  // of lane i: which of the tokens that were read in turn i are valid
    __syncwarp();       // the last tile's chunks have been taken
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
        shared[0][staged(i * kWarp + lane)] = tile.rewards[i];
        shared[1][staged(i * kWarp + lane)] = tile.values[i];
        const unsigned valid = __ballot_sync(kAllLanes, tile.valid[i]);
        if (lane == i) word = valid;
    }
    __syncwarp();
    Chunk<T> chunk;
    chunk.valid = __shfl_sync(kAllLanes, word, lane * kChunk / kWarp) >> (lane * kChunk % kWarp);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
        chunk.rewards[i] = shared[0][staged(lane * kChunk + i)];
        chunk.values[i] = shared[1][staged(lane * kChunk + i)];
    }
    return chunk;
}

template <typename T, int kLambdas>
__device__ GaeElement<T, kLambdas> summary(const GaeArguments<T>& x, const Decays<T, kLambdas>& decays,
                                           const Chunk<T>& chunk) {
    auto all = gae_identity<T, kLambdas>();
#pragma unroll
    for (int i = kChunk - 1; i >= 0; --i) {
        if (chunk.valid >> i & 1) {
            all = gae_compose(gae_token(chunk.rewards[i], chunk.values[i], x.gamma, decays.c), all);
        }
    }
    return all;
}

// That of the lane so many to the right; where there is none, the lane's own.
template <typename T, int kLambdas>
__device__ GaeElement<T, kLambdas> from_right(const GaeElement<T, kLambdas>& own, int lanes) {
    GaeElement<T, kLambdas> other;
    other.kind = static_cast<GaeKind>(__shfl_down_sync(kAllLanes, static_cast<int>(own.kind), lanes));
    other.value = __shfl_down_sync(kAllLanes, own.value, lanes);
    for (int i = 0; i < kLambdas; ++i) {
        other.sums[i].advantage = __shfl_down_sync(kAllLanes, own.sums[i].advantage, lanes);
        other.sums[i].decay = __shfl_down_sync(kAllLanes, own.sums[i].decay, lanes);
        other.sums[i].next_value_weight = __shfl_down_sync(kAllLanes, own.sums[i].next_value_weight, lanes);
    }
    return other;
}

// Of each lane: its own element and those of all lanes to its right, as one.
template <typename T, int kLambdas>
__device__ GaeElement<T, kLambdas> suffixes(GaeElement<T, kLambdas> own) {
#pragma unroll
    for (int lanes = 1; lanes < kWarp; lanes *= 2) {
        const auto right = from_right(own, lanes);
        if (lane_index() + lanes < kWarp) own = gae_compose(own, right);
    }
    return own;
}

// What a token needs from the next valid token of its sequence; one advantage for each lambda.
template <typename T, int kLambdas>
struct Carry {
    T value;
    T advantages[kLambdas];
};

template <typename T, int kLambdas>
__device__ GaeElement<T, kLambdas> closed(const Carry<T, kLambdas>& carry) {
    auto end = gae_end<T, kLambdas>(carry.value);
    for (int i = 0; i < kLambdas; ++i) end.sums[i].advantage = carry.advantages[i];
    return end;
}

// That of the first lane.
template <typename T, int kLambdas>
__device__ Carry<T, kLambdas> from_first_lane(Carry<T, kLambdas> carry) {
    carry.value = __shfl_sync(kAllLanes, carry.value, 0);
    for (int i = 0; i < kLambdas; ++i) carry.advantages[i] = __shfl_sync(kAllLanes, carry.advantages[i], 0);
    return carry;
}

template <typename T, int kLambdas>
__device__ Carry<T, kLambdas> carry_of(const GaeElement<T, kLambdas>& closed) {
    Carry<T, kLambdas> carry;
    carry.value = closed.value;
    for (int i = 0; i < kLambdas; ++i) carry.advantages[i] = closed.sums[i].advantage;
    return carry;
}

// What comes into a stretch, from the summaries of those to its right: 32 of them at a time, from the last one on.
template <typename T, int kLambdas>
__device__ Carry<T, kLambdas> carry_into(const GaeArguments<T>& x, const Stretch& stretch,
                                         const GaeElement<T, kLambdas>* own_summary) {
    Carry<T, kLambdas> carry = {x.bootstrap ? x.bootstrap[stretch.sequence] : 0, {}};
    for (int64_t done = 0; done < stretch.later; done += kWarp) {
        const int64_t from_last = done + kWarp - 1 - lane_index();
        const auto summary =
            from_last < stretch.later ? own_summary[stretch.later - from_last] : gae_identity<T, kLambdas>();
        carry = from_first_lane(carry_of(gae_compose(suffixes(summary), closed(carry))));
    }
    return carry;
}

// The results of a lane's tokens, by the definition: delta = r + gamma V' - V, A = delta + gamma lambda A'.
template <typename T, int kLambdas>
__device__ void finish(const GaeArguments<T>& x, const Decays<T, kLambdas>& decays, const Chunk<T>& chunk,
                       Carry<T, kLambdas>& carry, T (&shared)[2][kStaged]) {
#pragma unroll
    for (int i = kChunk - 1; i >= 0; --i) {
        T advantage = 0, result = 0;
        if (chunk.valid >> i & 1) {
            const T delta = chunk.rewards[i] + x.gamma * carry.value - chunk.values[i];
            carry.value = chunk.values[i];
            for (int j = 0; j < kLambdas; ++j) carry.advantages[j] = delta + decays.c[j] * carry.advantages[j];
            advantage = carry.advantages[0];
            result = carry.advantages[kLambdas - 1] + carry.value;
        }
        shared[0][staged(lane_index() * kChunk + i)] = advantage;
        shared[1][staged(lane_index() * kChunk + i)] = result;
    }
}

template <typename T>
__device__ void store(const GaeArguments<T>& x, int64_t begin, int64_t end, const T (&shared)[2][kStaged]) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
        const int token = i * kWarp + lane_index();
        const int64_t t = end - kTile + token;
        if (t >= begin) {
            x.advantages[t] = shared[0][staged(token)];
            x.returns[t] = shared[1][staged(token)];
        }
    }
}

// One for each stretch that has a left neighbour.
template <typename T, int kLambdas>
__global__ void summaries_kernel(GaeArguments<T> x, int64_t stretches, GaeElement<T, kLambdas>* summaries) {
    __shared__ T shared[kWarpsPerBlock][2][kStaged];
    const int64_t index = warp_index();
    if (index >= stretches) return;
    const Stretch stretch = stretch_of(x, index);
    if (stretch.later < 0 || !stretch.continues) return;
    const auto decays = decays_of<T, kLambdas>(x, stretch.sequence);
    auto all = gae_identity<T, kLambdas>();
    Tile<T> tile = load(x, stretch.begin, stretch.end);
    for (int64_t end = stretch.end; end > stretch.begin; end -= kTile) {
        const Tile<T> next = load(x, stretch.begin, end - kTile);
        const Chunk<T> chunk = own_chunk(tile, shared[threadIdx.x / kWarp]);
        all = gae_compose(suffixes(summary(x, decays, chunk)), all);  // of use in the first lane
        tile = next;
    }
    if (lane_index() == 0) summaries[index] = all;
}

template <typename T, int kLambdas>
__global__ void results_kernel(GaeArguments<T> x, int64_t stretches, const GaeElement<T, kLambdas>* summaries) {
    __shared__ T shared[kWarpsPerBlock][2][kStaged];
    const int64_t index = warp_index();
    if (index >= stretches) return;
    const Stretch stretch = stretch_of(x, index);
    if (stretch.later < 0) return;
    const auto decays = decays_of<T, kLambdas>(x, stretch.sequence);
    Tile<T> tile = load(x, stretch.begin, stretch.end);
    Carry<T, kLambdas> carry = carry_into(x, stretch, summaries + index);
    for (int64_t end = stretch.end; end > stretch.begin; end -= kTile) {
        const Tile<T> next = load(x, stretch.begin, end - kTile);
        auto& staging = shared[threadIdx.x / kWarp];
        const Chunk<T> chunk = own_chunk(tile, staging);
        const auto right = from_right(suffixes(summary(x, decays, chunk)), 1);
        if (lane_index() + 1 < kWarp) carry = carry_of(gae_compose(right, closed(carry)));
        finish(x, decays, chunk, carry, staging);
        store(x, stretch.begin, end, staging);
        carry = from_first_lane(carry);
        tile = next;
    }
}

template <typename T, int kLambdas>
void run(const GaeArguments<T>& x, int64_t tokens, void* workspace, cudaStream_t stream) {
    const int64_t stretches = first_stretch(tokens, x.sequences);
    auto* summaries = static_cast<GaeElement<T, kLambdas>*>(workspace);
    const int64_t blocks = blocks_for(stretches);
    launch("gae", summaries_kernel<T, kLambdas>, blocks, kThreads, stream, x, stretches, summaries);
    launch("gae", results_kernel<T, kLambdas>, blocks, kThreads, stream, x, stretches, summaries);
}

}  // namespace

template <typename T>
int64_t gae_workspace(int64_t tokens, int64_t sequences, bool decoupled) {
    return first_stretch(tokens, sequences) * (decoupled ? sizeof(GaeElement<T, 2>) : sizeof(GaeElement<T, 1>));
}

template <typename T>
void gae(const GaeArguments<T>& arguments, int64_t tokens, void* workspace, cudaStream_t stream) {
    if (arguments.decoupled) {
        run<T, 2>(arguments, tokens, workspace, stream);
    } else {
        run<T, 1>(arguments, tokens, workspace, stream);
    }
}

template int64_t gae_workspace<float>(int64_t, int64_t, bool);
template int64_t gae_workspace<double>(int64_t, int64_t, bool);
template void gae(const GaeArguments<float>&, int64_t, void*, cudaStream_t);
template void gae(const GaeArguments<double>&, int64_t, void*, cudaStream_t);

}  // namespace areal_mega
