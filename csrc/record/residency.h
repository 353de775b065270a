// Where storages are while a plan is in force: on the chip, on the host, or on both.
#pragma once
#include <cstdint>
#include <unordered_map>

namespace bringup {

// Note [Residency]
// Each storage has a valid bit per side. Storages begin on the chip. A launch copies what it reads and its side lacks, and leaves
// what it writes on its side only. So a value crosses the link at most once in each direction, however many launches read it. The
// virtual chip computes both sides in one memory, and only the recording has the copies. On a device, what a launch of the host
// reads and writes is staged (see launch/native.h).
struct Touched {
  const void* address;
  int64_t bytes;  // 0: those of its allocation
  bool read, written;
};

class Residency {
 public:
  void clear() { states_.clear(); }
  void allocate(const void* address, int64_t bytes) { states_[address] = {true, true, bytes}; }  // nothing is in it yet
  bool on_host(const void* address) const {
    auto entry = states_.find(address);
    return entry != states_.end() && entry->second.host;
  }
  bool is_whole(const void* address, int64_t bytes) const {
    auto entry = states_.find(address);
    return entry == states_.end() || bytes + kRounding >= entry->second.bytes;
  }
  // Makes a side have a storage. True if it did not have it.
  bool fetch(const Touched& storage, bool on_host) {
    State& state = of(storage);
    bool& valid = on_host ? state.host : state.chip;
    bool lacked = !valid;
    valid = true;
    return lacked;
  }
  void write(const Touched& storage, bool on_host) {
    State& state = of(storage);
    state.host = on_host;
    state.chip = !on_host;
  }
  int64_t bytes(const Touched& storage) { return of(storage).bytes; }

 private:
  static constexpr int64_t kRounding = 512;  // bytes; blocks are multiples of it (runtime/blocks.h)
  struct State {
    bool host = false, chip = true;
    int64_t bytes = 0;
  };
  State& of(const Touched& storage) {
    return states_.try_emplace(storage.address, State{false, true, storage.bytes}).first->second;
  }
  std::unordered_map<const void*, State> states_;
};

}  // namespace bringup
