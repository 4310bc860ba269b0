#include "balance.h"

#include <algorithm>
#include <numeric>
#include <queue>
#include <utility>
#include <vector>

namespace areal_mega {
namespace {

// Indices of the costs, largest first; of equal ones the first.
std::vector<int32_t> largest_first(const int64_t* costs, int64_t count) {
    std::vector<std::pair<int64_t, int32_t>> keyed(count);
    for (int64_t i = 0; i < count; ++i) keyed[i] = {-costs[i], static_cast<int32_t>(i)};
    std::sort(keyed.begin(), keyed.end());
    std::vector<int32_t> order(count);
    for (int64_t i = 0; i < count; ++i) order[i] = keyed[i].second;
    return order;
}

// A set of sequences: the first and the last of a list whose links stand in Differencing::next.
struct Subset {
    int64_t cost;
    int32_t head;
    int32_t tail;

    // Largest first; of equal ones in the order of the heads, which are all different.
    bool operator<(const Subset& other) const { return cost != other.cost ? cost > other.cost : head < other.head; }
};

// Subsets that will be in different parts, largest first. Where there are fewer than parts, the others are empty.
using Tuple = std::vector<Subset>;

// The differencing method of Karmarkar and Karp for any number of parts: again and again the two tuples with the
// largest differences between their parts become one, large subsets with small ones. Empty parts are not stored, so
// that n tuples of one sequence each take O(n), not O(n parts).
class Differencing {
  public:
    Differencing(const int64_t* costs, int64_t count, int64_t parts)
        : costs_(costs), count_(count), parts_(parts), order_(largest_first(costs, count)), next_(count, -1) {}

    // The first tuples have one sequence in each part, which all unions keep equal. `count` is divisible by `parts`.
    void begin_with_full_tuples() {
        for (; taken_ < count_; taken_ += parts_) {
            Tuple tuple;
            for (int64_t i = 0; i < parts_; ++i) tuple.push_back(single(order_[taken_ + i]));
            put(std::move(tuple));
        }
    }

    // Unites all tuples; a sequence that is in none is one of its own.
    Tuple unite() {
        while (taken_ < count_ || waiting_.size() > 1) {
            if (taken_ == count_ - 1 && waiting_.empty()) return take();
            Tuple first = take();
            put(combine(std::move(first), take()));
        }
        return waiting_.empty() ? Tuple{} : take();
    }

    int32_t after(int32_t sequence) const { return next_[sequence]; }

  private:
    Subset single(int32_t sequence) const { return {costs_[sequence], sequence, sequence}; }

    int64_t difference(const Tuple& tuple) const {
        const bool full = static_cast<int64_t>(tuple.size()) == parts_;
        return tuple.front().cost - (full ? tuple.back().cost : 0);
    }

    // The tuple of the largest difference; of equal ones a single sequence, or else the oldest.
    Tuple take() {
        if (taken_ < count_) {
            const Subset next = single(order_[taken_]);
            const int64_t own = parts_ == 1 ? 0 : next.cost;
            if (waiting_.empty() || own >= waiting_.top().first) {
                ++taken_;
                return {next};
            }
        }
        Tuple tuple = std::move(tuples_[-waiting_.top().second]);
        waiting_.pop();
        return tuple;
    }

    void put(Tuple tuple) {
        waiting_.push({difference(tuple), -static_cast<int64_t>(tuples_.size())});
        tuples_.push_back(std::move(tuple));
    }

    void append(Subset& to, const Subset& from) {
        next_[to.tail] = from.head;
        to.tail = from.tail;
        to.cost += from.cost;
    }

    // The largest of the smaller tuple go to the empty parts of the larger one, the rest to its smallest subsets.
    Tuple combine(Tuple large, Tuple small) {
        if (large.size() < small.size()) std::swap(large, small);
        const int64_t moved = std::min<int64_t>(small.size(), parts_ - large.size());
        const int64_t met = small.size() - moved;
        const int64_t untouched = large.size() - met;
        for (int64_t i = 0; i < met; ++i) append(large[large.size() - 1 - i], small[moved + i]);
        large.insert(large.end(), small.begin(), small.begin() + moved);
        const auto touched = large.begin() + untouched;
        if (!std::is_sorted(touched, large.end())) std::sort(touched, large.end());
        // Mostly they all stay behind the others, or not far before.
        const auto first = std::upper_bound(large.begin(), touched, *touched);
        if (first != touched) std::inplace_merge(first, touched, large.end());
        return large;
    }

    const int64_t* costs_;
    int64_t count_;
    int64_t parts_;
    std::vector<int32_t> order_;
    std::vector<int32_t> next_;
    int64_t taken_ = 0;
    std::vector<Tuple> tuples_;
    std::priority_queue<std::pair<int64_t, int64_t>> waiting_;  // difference, minus the index in tuples_
};

// The room in each bin, under a tree whose nodes hold the most room below them.
class Bins {
  public:
    Bins(int64_t count, int64_t budget) {
        while (leaves_ < count) leaves_ *= 2;
        room_.assign(2 * leaves_, budget);
    }

    // Puts a cost into the first bin that has room for it.
    int64_t put(int64_t cost) {
        int64_t node = 1;
        while (node < leaves_) {
            node *= 2;
            if (room_[node] < cost) ++node;
        }
        const int64_t bin = node - leaves_;
        room_[node] -= cost;
        while (node /= 2) {
            const int64_t room = std::max(room_[2 * node], room_[2 * node + 1]);
            if (room_[node] == room) break;
            room_[node] = room;
        }
        return bin;
    }

  private:
    int64_t leaves_ = 1;
    std::vector<int64_t> room_;
};

}  // namespace

void balance(const int64_t* costs, int64_t count, int64_t parts, bool equal_counts, int64_t* part_of) {
    Differencing differencing(costs, count, parts);
    if (equal_counts) differencing.begin_with_full_tuples();
    const Tuple result = differencing.unite();
    for (std::size_t part = 0; part < result.size(); ++part) {
        for (int32_t i = result[part].head; i >= 0; i = differencing.after(i)) part_of[i] = part;
    }
}

void first_fit(const int64_t* costs, int64_t count, int64_t budget, int64_t* bin_of) {
    Bins bins(count, budget);
    for (const int32_t i : largest_first(costs, count)) bin_of[i] = bins.put(costs[i]);
}

}  // namespace areal_mega
