// How an allocator divides its segments into blocks: size classes, best fit, splitting, merging and expandable segments. The
// rules are those of torch's CUDA allocator (c10/cuda/CUDACachingAllocator.cpp), so that programs fragment memory as they do with
// CUDA. The allocator of device memory follows them, and so does the replay of a recording's allocations
// (record/memory_replay.cpp).
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <set>
#include <vector>

namespace bringup {

constexpr size_t kRound = 512;              // block sizes are multiples of this
constexpr size_t kSmall = size_t(1) << 20;  // larger blocks are not in the small pool
constexpr size_t kSmallSegment = size_t(2) << 20;
constexpr size_t kLargeSegment = size_t(20) << 20;  // for blocks from kSmall to kMiddle
constexpr size_t kMiddle = size_t(10) << 20;
constexpr size_t kRoundLarge = size_t(2) << 20;  // segments for blocks of kMiddle and more are multiples of this

inline size_t up_to(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

inline size_t block_bytes(size_t requested) { return std::max(kRound, up_to(requested, kRound)); }

// The size of a segment that does not expand, for one block.
inline size_t segment_bytes(size_t block) {
  return block <= kSmall ? kSmallSegment : block < kMiddle ? kLargeSegment : up_to(block, kRoundLarge);
}

// Expandable segments grow and shrink by pages.
inline size_t page_bytes(bool small) { return small ? kSmallSegment : kLargeSegment; }

// The addresses of an expandable segment: an eighth more than the device has memory, so that pages which are unmapped in the
// middle can be mapped again at the end.
inline size_t range_bytes(size_t capacity, size_t block, bool small) {
  return up_to(std::max(capacity + capacity / 8, block), page_bytes(small));
}

// The blocks that may serve each other's requests.
struct BlockGroup {
  int64_t arena, stream;
  bool small;
};

// A reserved range of addresses, the extent of an expandable segment.
struct Range {
  char* address;
  size_t bytes;
};

// Leaving: its memory is being given back to the device. Unmapped: addresses of an expandable segment without memory.
enum class BlockState : uint8_t { Free, Allocated, Leaving, Unmapped };

// The base of a block. A block is made and merged by its functions `part()`, which returns a new block of the same group, and
// `absorb(other)`, which takes over what the owner of `other`'s memory has to know.
template <class Block>
struct BlockBase {
  char* address = nullptr;
  size_t bytes = 0;
  int64_t arena = 0, stream = 0;
  bool small = false;
  BlockState state = BlockState::Free;
  std::shared_ptr<Range> range;                // of an expandable segment, else null
  Block *previous = nullptr, *next = nullptr;  // neighbours in the segment

  bool is_free() const { return state == BlockState::Free; }
  bool is_part() const { return previous || next; }
};

template <class Block>
struct BySize {
  bool operator()(const Block* a, const Block* b) const {
    if (a->arena != b->arena) return a->arena < b->arena;
    if (a->stream != b->stream) return a->stream < b->stream;
    if (a->bytes != b->bytes) return a->bytes < b->bytes;
    return a->address < b->address;
  }
};

template <class Block>
struct ByAddress {
  bool operator()(const Block* a, const Block* b) const {
    if (a->arena != b->arena) return a->arena < b->arena;
    if (a->stream != b->stream) return a->stream < b->stream;
    return a->address < b->address;
  }
};

// The free blocks of a device. Its owner locks it, and provides `Memory`:
//   bool has_room(size_t bytes)                 true if that much more memory may be taken from the device
//   char* reserve(size_t bytes)                 addresses for an expandable segment; null if there are none
//   bool map(const Block& pages, size_t bytes)  gives the first bytes of unmapped pages memory; false if there is none
//   void count_part(const Block& block, int n)  counts free parts of segments that do not expand: n more
template <class Block, class Memory>
class FreeBlocks {
 public:
  using Sizes = std::set<Block*, BySize<Block>>;

  explicit FreeBlocks(Memory& memory) : memory_(memory) {}
  FreeBlocks(const FreeBlocks&) = delete;
  ~FreeBlocks() {
    for (const Sizes& free : free_) std::for_each(free.begin(), free.end(), std::default_delete<Block>());
    for (const auto& unmapped : unmapped_) std::for_each(unmapped.begin(), unmapped.end(), std::default_delete<Block>());
  }

  const Sizes& free(bool small) const { return free_[small]; }

  // Takes the smallest free block that is large enough, as allocated; null if there is none.
  Block* take(const BlockGroup& group, size_t bytes, bool expandable) {
    Block key;
    key.arena = group.arena;
    key.stream = group.stream;
    key.bytes = bytes;
    Sizes& free = free_[group.small];
    auto fits = [&](auto entry) { return entry != free.end() && is_in(**entry, group); };
    auto entry = free.lower_bound(&key);
    if (!expandable)
      while (fits(entry) && (*entry)->range) ++entry;
    if (!fits(entry)) return nullptr;
    if (expandable)  // a block at the end of the mapped pages counts with the addresses behind it, so that it is left for last
      for (auto next = std::next(entry); (*entry)->range && fits(next) && extent(**next) < extent(**entry); ++next) entry = next;
    Block* block = *entry;
    free.erase(entry);
    count_part(*block, -1);
    block->state = BlockState::Allocated;
    return block;
  }

  // The same for a block that an expandable segment gets by mapping pages, at the lowest address; null if there is no memory.
  Block* expand(const BlockGroup& group, size_t bytes, size_t capacity) {
    Block* block = lowest_extent(group, bytes);
    if (!memory_.has_room(block ? missing(*block, bytes) : up_to(bytes, page_bytes(group.small)))) return nullptr;
    if (!block) block = reserve(group, range_bytes(capacity, bytes, group.small));
    while (block && (block->state == BlockState::Unmapped || block->bytes < bytes)) {
      bool starts = block->state == BlockState::Unmapped;
      Block* pages = starts ? block : block->next;
      block = map(pages, starts ? bytes : bytes - block->bytes);
    }
    if (!block) return nullptr;
    free_[group.small].erase(block);
    block->state = BlockState::Allocated;
    return block;
  }

  // Cuts off what the block has beyond `bytes`, unless so little remains that it stays unused.
  void split(Block* block, size_t bytes, bool expandable) {
    size_t rest = block->bytes - bytes;
    if (rest < kRound || (!block->small && !expandable && rest <= kSmall)) return;
    Block* tail = cut(block, bytes);
    free_[tail->small].insert(tail);
    count_part(*tail, 1);
  }

  // Adds a block that is no longer in use, and merges it with its free neighbours.
  void add(Block* block) {
    block->state = BlockState::Free;
    merge(block, block->previous);
    merge(block, block->next);
    count_part(*block, 1);
    free_[block->small].insert(block);
  }

  // Takes out what can be given back to the device: whole segments, and the whole pages of expandable ones. `leave` and, if the
  // device refuses, `add` continue with each.
  std::vector<Block*> unused() {
    std::vector<Block*> candidates, leaving;
    for (const Sizes& free : free_)
      for (Block* block : free)
        if (block->arena == 0 && (block->range || !block->is_part())) candidates.push_back(block);
    for (Block* block : candidates) {
      size_t page = page_bytes(block->small), start = 0, end = block->bytes;
      if (block->range) {
        size_t offset = size_t(block->address - block->range->address);
        start = up_to(offset, page) - offset;
        end = (offset + block->bytes) / page * page;
        end = end > offset ? end - offset : 0;
        if (start >= end) continue;
      }
      free_[block->small].erase(block);
      if (end < block->bytes) free_[block->small].insert(cut(block, end));
      if (start > 0) {
        Block* pages = cut(block, start);
        free_[block->small].insert(block);
        block = pages;
      }
      block->state = BlockState::Leaving;
      leaving.push_back(block);
    }
    return leaving;
  }

  // The device has taken the pages back.
  void leave(Block* pages) {
    pages->state = BlockState::Unmapped;
    merge(pages, pages->previous);
    merge(pages, pages->next);
    unmapped_[pages->small].insert(pages);
  }

  // Takes out the expandable segments without memory, each as one block. `keep` takes those back whose addresses the device
  // cannot release.
  std::vector<Block*> empty_segments() {
    std::vector<Block*> empty;
    for (auto& unmapped : unmapped_)
      std::erase_if(unmapped, [&](Block* block) {
        bool whole = !block->is_part() && block->arena == 0;
        if (whole) empty.push_back(block);
        return whole;
      });
    return empty;
  }

  void keep(Block* segment) { unmapped_[segment->small].insert(segment); }

  // Moves all blocks of an arena to the blocks of no arena, or out of use. Calls `each` for every free one.
  template <class Each>
  void retire(int64_t arena, bool usable, Each each) {
    auto moved = [&](auto& blocks, auto then) {
      std::vector<Block*> members;
      std::erase_if(blocks, [&](Block* block) {
        if (block->arena == arena) members.push_back(block);
        return block->arena == arena;
      });
      for (Block* block : members) {
        block->arena = 0;
        then(block);
        if (usable)
          blocks.insert(block);
        else
          block->state = BlockState::Leaving;
      }
    };
    for (Sizes& free : free_) moved(free, each);
    for (auto& unmapped : unmapped_) moved(unmapped, [](Block*) {});
  }

 private:
  Memory& memory_;
  Sizes free_[2];  // large, small
  std::set<Block*, ByAddress<Block>> unmapped_[2];

  static bool is_in(const Block& block, const BlockGroup& group) {
    return block.arena == group.arena && block.stream == group.stream;
  }

  static size_t extent(const Block& block) {
    bool grows = block.next && block.next->state == BlockState::Unmapped;
    return block.bytes + (grows ? block.next->bytes : 0);
  }

  void count_part(const Block& block, int n) {
    if (block.is_part() && !block.range) memory_.count_part(block, n);
  }

  // The first of neighbouring free and unmapped blocks that have room for `bytes` in all; null if there are none.
  Block* lowest_extent(const BlockGroup& group, size_t bytes) {
    Block key;
    key.arena = group.arena;
    key.stream = group.stream;
    auto& unmapped = unmapped_[group.small];
    for (auto entry = unmapped.lower_bound(&key); entry != unmapped.end() && is_in(**entry, group); ++entry) {
      Block* first = *entry;
      if (first->previous && first->previous->is_free()) first = first->previous;
      size_t room = 0;
      for (Block* block = first; block && room < bytes && is_available(*block); block = block->next) room += block->bytes;
      if (room >= bytes) return first;
    }
    return nullptr;
  }

  static bool is_available(const Block& block) { return block.is_free() || block.state == BlockState::Unmapped; }

  // The memory that the blocks from `first` on need to hold `bytes`.
  static size_t missing(const Block& first, size_t bytes) {
    size_t total = 0;
    for (const Block* block = &first; bytes > 0; block = block->next) {
      size_t part = std::min(bytes, block->bytes);
      if (!block->is_free()) total += std::min(block->bytes, up_to(part, page_bytes(block->small)));
      bytes -= part;
    }
    return total;
  }

  Block* reserve(const BlockGroup& group, size_t bytes) {
    char* address = memory_.reserve(bytes);
    if (!address) return nullptr;
    auto* block = new Block();
    block->address = address;
    block->bytes = bytes;
    block->arena = group.arena;
    block->stream = group.stream;
    block->small = group.small;
    block->state = BlockState::Unmapped;
    block->range = std::make_shared<Range>(Range{address, bytes});
    unmapped_[group.small].insert(block);
    return block;
  }

  // Maps the first pages of unmapped ones, and returns the free block that they are part of then; null if there is no memory.
  Block* map(Block* pages, size_t bytes) {
    bytes = std::min(pages->bytes, up_to(bytes, page_bytes(pages->small)));
    if (!memory_.map(*pages, bytes)) return nullptr;
    unmapped_[pages->small].erase(pages);
    if (bytes < pages->bytes) unmapped_[pages->small].insert(cut(pages, bytes));
    add(pages);
    return pages;
  }

  // Cuts a block, which is in no set, at `bytes`, and returns the rest.
  Block* cut(Block* block, size_t bytes) {
    Block* rest = block->part();
    rest->address = block->address + bytes;
    rest->bytes = block->bytes - bytes;
    rest->arena = block->arena;
    rest->stream = block->stream;
    rest->small = block->small;
    rest->state = block->state == BlockState::Unmapped ? BlockState::Unmapped : BlockState::Free;
    rest->range = block->range;
    rest->previous = block;
    rest->next = block->next;
    if (block->next) block->next->previous = rest;
    block->next = rest;
    block->bytes = bytes;
    return rest;
  }

  // Merges a neighbour of the same state, which is in its set, into a block, which is in none.
  void merge(Block* block, Block* other) {
    if (!other || other->state != block->state) return;
    if (other->is_free()) {
      free_[other->small].erase(other);
      count_part(*other, -1);
    } else {
      unmapped_[other->small].erase(other);
    }
    block->address = std::min(block->address, other->address);
    block->bytes += other->bytes;
    if (other == block->previous) {
      block->previous = other->previous;
      if (block->previous) block->previous->next = block;
    } else {
      block->next = other->next;
      if (block->next) block->next->previous = block;
    }
    block->absorb(*other);
    delete other;
  }
};

}  // namespace bringup
