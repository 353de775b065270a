#include "record/memory_replay.h"

#include <unordered_map>

#include "record/recorder.h"
#include "runtime/blocks.h"

namespace bringup {

namespace {

struct ReplayedBlock : BlockBase<ReplayedBlock> {
  ReplayedBlock* part() const { return new ReplayedBlock(); }
  void absorb(const ReplayedBlock&) {}
};

// The allocator without memory. See FreeBlocks for the functions that it calls.
class ExpandableReplay {
 public:
  ExpandableReplay(size_t limit, size_t capacity) : limit_(limit), capacity_(capacity) {}
  ExpandableReplay(const ExpandableReplay&) = delete;
  ~ExpandableReplay() {
    for (auto& [address, block] : live_) delete block;
  }

  void allocate(uint64_t address, const BlockGroup& group, size_t bytes) {
    ReplayedBlock* block = blocks_.take(group, bytes, true);
    if (!block) block = blocks_.expand(group, bytes, capacity_);
    if (!block) {
      release();
      block = blocks_.expand(group, bytes, capacity_);
    }
    if (!block) {
      result_.fits = false;
      block = blocks_.expand(group, bytes, capacity_);  // `has_room` no longer refuses
    }
    blocks_.split(block, bytes, true);
    free(address);  // its free is not recorded
    live_[address] = block;
  }

  void free(uint64_t address) {
    auto entry = live_.find(address);
    if (entry == live_.end()) return;
    blocks_.add(entry->second);
    live_.erase(entry);
  }

  void release() {
    for (ReplayedBlock* pages : blocks_.unused()) {
      result_.reserved -= pages->bytes;
      blocks_.leave(pages);
    }
    for (ReplayedBlock* segment : blocks_.empty_segments()) delete segment;
  }

  const ReplayedMemory& result() const { return result_; }

  bool has_room(size_t bytes) const { return !result_.fits || result_.reserved + bytes <= limit_; }

  char* reserve(size_t bytes) {
    next_ += bytes;
    return reinterpret_cast<char*>(next_ - bytes);
  }

  bool map(const ReplayedBlock&, size_t bytes) {
    result_.reserved += bytes;
    result_.peak = std::max(result_.peak, result_.reserved);
    return true;
  }

  void count_part(const ReplayedBlock&, int) {}

 private:
  size_t limit_, capacity_;
  uintptr_t next_ = kLargeSegment;  // the next address to be reserved; nothing is there
  ReplayedMemory result_;
  FreeBlocks<ReplayedBlock, ExpandableReplay> blocks_{*this};
  std::unordered_map<uint64_t, ReplayedBlock*> live_;
};

}  // namespace

std::optional<ReplayedMemory> replay_with_expandable_segments(const ReservedNow& now, const Wanted* wanted) {
  ExpandableReplay replay(now.limit, now.capacity);
  int64_t reserved = 0;
  for (const MemoryRow& row : recorded_memory(now.device)) {
    switch (row.kind) {
      case RowKind::Reserve:
        reserved += row.bytes;
        break;
      case RowKind::Release:
        reserved -= row.bytes;
        if (!(row.flags & kOfAllocator)) replay.release();  // the allocator's own follow from what finds no memory here
        break;
      case RowKind::Alloc:
        replay.allocate(row.address, {row.arena, row.stream, size_t(row.bytes) <= kSmall}, size_t(row.bytes));
        break;
      default:
        replay.free(row.address);
    }
  }
  if (reserved != int64_t(now.reserved)) return std::nullopt;
  if (wanted) {
    size_t bytes = block_bytes(wanted->requested);
    replay.allocate(0, {wanted->arena, wanted->stream, bytes <= kSmall}, bytes);
  }
  return replay.result();
}

}  // namespace bringup
