// torch.distributed: every collective runs in stream order on the group's own stream, by gloo, on the chip's memory.
//
// Note [Collectives]
// As NCCL's, a collective waits for the current stream and runs on the group's stream; `wait` makes the stream that is then
// current wait for it. In groups with a backend for devices, a second group with gloo stands in for the program's. A group of
// gloo alone also runs collectives of CPU tensors, in the program's order, so there the host waits for each collective. Sends
// have a stream of their own, because two ranks that exchange tensors would wait for each other otherwise. A fake group has no
// other ranks: a collective then returns what it would if all of them had this rank's tensors.
//
// Note [Watched ranks]
// `bringup run --nproc` gives each rank a file, in which every stream with collectives has a slot: the collective that waits for
// other ranks, with its line. Before each collective, the ranks of a group exchange these words. If one rank calls another
// collective, all raise an error that names both lines.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/StreamGuard.h>
#include <c10/util/Exception.h>
#include <fcntl.h>
#include <unistd.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <torch/library.h>

#include <functional>
#include <map>
#include <mutex>
#include <unordered_map>

#include "json.h"
#include "launch/dry.h"
#include "launch/launch.h"
#include "python/python.h"
#include "record/recorder.h"
#include "runtime/runtime.h"
#include "torch/views.h"

namespace bringup {
namespace {

using c10::IValue;
using Tensors = std::vector<at::Tensor>;

// ---- groups

struct Group {
  std::optional<IValue> stand_in;                      // the group that runs its collectives; none: itself
  std::vector<int64_t> ranks;                          // in the default group; empty: all of them
  bool alone = false;                                  // there are no other ranks
  std::map<int, std::pair<Stream*, Stream*>> streams;  // by device: of collectives and receives, and of sends
};

struct Groups {
  std::mutex mutex;
  std::unordered_map<const void*, Group> by_identity;
};

Groups& groups() {
  static auto* all = new Groups();
  return *all;
}

c10::intrusive_ptr<c10d::ProcessGroup> process_group(const IValue& group) { return group.toCustomClass<c10d::ProcessGroup>(); }

void describe_group(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  bool alone = torch::jit::pop(*stack).toBool();
  std::vector<int64_t> ranks = torch::jit::pop(*stack).toIntVector();
  IValue stand_in = torch::jit::pop(*stack), group = torch::jit::pop(*stack);
  std::lock_guard<std::mutex> lock(groups().mutex);
  Group& entry = groups().by_identity[process_group(group).get()];
  entry = {};  // a group that is gone may have had this address
  if (process_group(stand_in) != process_group(group)) entry.stand_in = stand_in;
  entry.ranks = std::move(ranks);
  entry.alone = alone;
}

// ---- what a call does

struct Kind {
  const char* name;     // as in pricing/collective.py
  size_t written;       // the number of tensor arguments that are written, from the first on
  bool scaled = false;  // the whole is this rank's part times the size of the group, if its arguments do not show it
};

const Kind* kind_of(const std::string& name) {
  static const auto* all = new std::unordered_map<std::string, Kind>{
      {"allreduce_", {"all_reduce", 1}},
      {"allreduce_coalesced_", {"all_reduce", 1}},
      {"allgather_", {"all_gather", 1}},
      {"_allgather_base_", {"all_gather", 1}},
      {"allgather_coalesced_", {"all_gather", 1}},
      {"allgather_into_tensor_coalesced_", {"all_gather", 1}},
      {"reduce_scatter_", {"reduce_scatter", 1}},
      {"_reduce_scatter_base_", {"reduce_scatter", 1}},
      {"reduce_scatter_tensor_coalesced_", {"reduce_scatter", 1}},
      {"alltoall_", {"all_to_all", 1}},
      {"alltoall_base_", {"all_to_all", 1}},
      {"broadcast_", {"broadcast", 1}},
      {"reduce_", {"reduce", 1}},
      {"gather_", {"gather", 1, true}},
      {"scatter_", {"scatter", 1, true}},
      {"send", {"send", 0}},
      {"recv_", {"recv", 1}},
      {"recv_any_source_", {"recv", 1}},
      {"barrier", {"barrier", 1}},
  };
  auto entry = all->find(name);
  return entry == all->end() ? nullptr : &entry->second;
}

void collect(const IValue& value, Tensors& into) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) into.push_back(value.toTensor());
  } else if (value.isList()) {
    for (const IValue& element : value.toListRef()) collect(element, into);
  }
}

IValue map_tensors(const IValue& value, const std::function<at::Tensor(const at::Tensor&)>& map) {
  if (value.isTensor()) return map(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(map(tensor));
    return list;
  }
  if (!value.isList() || value.toList().empty() || !value.toListRef()[0].isTensorList()) return value;
  c10::List<c10::List<at::Tensor>> lists;  // one per process
  for (const IValue& element : value.toListRef()) lists.push_back(map_tensors(element, map).toTensorList());
  return lists;
}

int64_t bytes_of(const Tensors& tensors) {
  int64_t bytes = 0;
  for (const at::Tensor& tensor : tensors) bytes += int64_t(tensor.nbytes());
  return bytes;
}

bool contain(const Tensors& tensors, const at::Tensor& tensor) {
  return std::any_of(tensors.begin(), tensors.end(), [&](const at::Tensor& other) { return other.is_same(tensor); });
}

// NCCL only looks at the numbers of elements in these collectives, gloo at the shapes. Sizes of an all-to-all's parts count rows.
bool ignores_shapes(const std::string& name, const torch::jit::Stack& arguments) {
  for (const IValue& argument : arguments)
    if (argument.isIntList() && !argument.toIntList().empty()) return false;
  return name.find("_base_") != std::string::npos || name.find("into_tensor") != std::string::npos ||
         name.find("scatter_tensor") != std::string::npos;
}

struct Collective {
  const c10::OperatorHandle& op;
  const Kind& kind;
  torch::jit::Stack arguments;
  Tensors written, read;  // on the chip
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  int64_t group_argument;
  int device = -1;

  Collective(const c10::OperatorHandle& op, const Kind& kind, torch::jit::Stack values)
      : op(op), kind(kind), arguments(std::move(values)) {
    size_t seen = 0;
    group_argument = *op.schema().argumentIndexWithName("process_group");
    for (size_t i = 0; i < arguments.size(); ++i) {
      Tensors tensors;
      collect(arguments[i], tensors);
      if (int64_t(i) > group_argument || tensors.empty()) continue;
      Tensors& into = seen++ < kind.written ? written : read;
      for (at::Tensor& tensor : tensors)
        if (tensor.device().type() == kChip) {
          device = tensor.device().index();
          into.push_back(std::move(tensor));
        }
    }
    group = process_group(arguments[size_t(group_argument)]);
  }

  int64_t number(const char* name, int64_t otherwise) const {
    auto index = op.schema().argumentIndexWithName(name);
    return index ? arguments[size_t(*index)].toInt() : otherwise;
  }

  bool between_two() const { return op.schema().name() == "c10d::send" || op.schema().name() == "c10d::recv_"; }
  int64_t peer() const { return number("dst", number("src", 0)); }

  int64_t bytes() const {
    int64_t whole = std::max(bytes_of(written), bytes_of(read));
    // Other ranks than the root only have their part.
    bool part = kind.scaled && (kind.name[0] == 'g' ? written.empty() : read.empty());
    return part ? whole * group->getSize() : whole;
  }
};

// The ranks of the call, as they are in the default group.
std::vector<int64_t> ranks_of(const Collective& call, const Group& group) {
  auto global = [&](int64_t rank) { return group.ranks.empty() ? rank : group.ranks[size_t(rank)]; };
  if (call.between_two()) return {global(call.group->getRank()), global(call.peer())};
  std::vector<int64_t> ranks;
  for (int64_t rank = 0; rank < call.group->getSize(); ++rank) ranks.push_back(global(rank));
  return ranks;
}

// "all_reduce of 16 bytes in float32 at train.py:12": what other ranks compare with their own call, up to the line. Ranks may
// have parts of different sizes in an all-to-all, and only the root of a gather or scatter has the whole.
std::string words(const Collective& call) {
  Text text;
  text << call.kind.name;
  bool equal = !call.kind.scaled && std::string(call.kind.name) != "all_to_all";
  const Tensors& tensors = call.read.empty() ? call.written : call.read;
  if (equal && !tensors.empty())
    text << " of " << call.bytes() << " bytes in " << c10::getDtypeNames(tensors[0].scalar_type()).first;
  if (call.between_two()) text << (call.kind.name[0] == 's' ? " to rank " : " from rank ") << call.peer();
  std::string line = describe(current_line());
  text << " at " << (line.empty() ? std::string("a line of autograd") : line);
  return text.str();
}

// ---- the record

// Ranks in equal steps are written as [first, step, number].
std::string ranks_text(const std::vector<int64_t>& ranks) {
  int64_t step = ranks.size() > 1 ? ranks[1] - ranks[0] : 1;
  bool even = true;
  for (size_t i = 1; i < ranks.size(); ++i) even = even && ranks[i] - ranks[i - 1] == step;
  Text text;
  if (even) {
    text << "\"first\":" << ranks[0] << ",\"step\":" << step << ",\"size\":" << ranks.size();
    return text.str();
  }
  text << "\"ranks\":[";
  for (size_t i = 0; i < ranks.size(); ++i) text << (i ? "," : "") << ranks[i];
  text << "],\"size\":" << ranks.size();
  return text.str();
}

void record_collective(const Collective& call, const Group& group, const Stream& on) {
  Text text;
  std::vector<std::pair<const void*, bool>> uses;
  text << "{\"op\":\"c10d::" << call.kind.name << "\",\"inputs\":[";
  auto add = [&](const Tensors& tensors, bool written) {
    for (const at::Tensor& tensor : tensors) {
      text << (uses.empty() ? "" : ",");
      write_meta(text, meta_of(tensor), int(uses.size()), written);
      uses.emplace_back(tensor.storage().data(), written);
    }
  };
  add(call.written, true);
  add(call.read, false);
  text << "],\"outputs\":[],\"args\":{\"bytes\":" << call.bytes() << "," << ranks_text(ranks_of(call, group)) << "}}";
  record_described(text.str(), on, current_line(), uses, 0);
}

// ---- watched ranks

constexpr size_t kSlot = 512, kWords = 256;  // bytes of a slot, and of what ranks exchange
std::atomic<int> watched_file{-1};

void watch_ranks(const std::string& path) {
  int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  TORCH_CHECK(file >= 0, path, ": cannot be opened");
  watched_file = file;
}

// Writes what a stream waits for; nothing if it goes on.
void note_wait(const Stream& on, const std::string& text) {
  char slot[kSlot] = {};
  text.copy(slot, kSlot - 1);
  ssize_t written = pwrite(watched_file, slot, kSlot, off_t(kSlot) * on.id.id());
  (void)written;  // the watch then shows an older state
}

// ---- running it

// What `wait` of the program's returns to. It holds the tensors until then, since the group's stream uses them.
struct CollectiveWork final : c10d::Work {
  CollectiveWork(const Collective& call, Stream& on, bool host_waits) : on(on), host_waits(host_waits) {
    for (const Tensors* tensors : {&call.written, &call.read}) used.insert(used.end(), tensors->begin(), tensors->end());
    results = call.written.empty() ? call.read : call.written;  // a future without tensors of the chip would not wait for it
    future = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()),
                                                      std::vector<c10::Device>{on.id.device()});
    c10::StreamGuard on_its_stream(on.id);
    future->markCompleted(IValue(results));  // records an event, for which `wait` makes the current stream wait
  }
  ~CollectiveWork() override {
    try {
      for (const at::Tensor& tensor : used) tensor.record_stream(on.id);
    } catch (...) {  // the process ends
    }
  }
  bool isCompleted() override { return query(on); }
  bool isSuccess() const override { return true; }
  std::vector<at::Tensor> result() override { return results; }
  void synchronize() override { wait(kNoTimeout); }
  bool wait(std::chrono::milliseconds) override {
    future->wait();
    if (host_waits) bringup::synchronize(on);
    used.clear();
    return true;
  }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future; }

  Stream& on;
  bool host_waits;
  Tensors used, results;
  c10::intrusive_ptr<c10::ivalue::Future> future;
};

bool is_reduction(const IValue& value) { return value.isObject() && value.type()->str().find("ReduceOp") != std::string::npos; }

// The results of a collective if all ranks had this rank's tensors. Gathered parts repeat it, and sums multiply it.
void run_alone(const torch::jit::Stack& arguments, const Kind& kind, const Tensors& written, const Tensors& read, int64_t rank,
               int64_t size) {
  bool sums = false;
  for (const IValue& value : arguments)
    if (is_reduction(value)) sums = *value.toCustomClass<c10d::ReduceOp>() == c10d::ReduceOp::SUM;
  at::NoGradGuard no_grad;
  auto flat = [](const Tensors& tensors) {
    Tensors parts;
    for (const at::Tensor& tensor : tensors) parts.push_back(tensor.reshape(-1));
    return at::cat(parts);
  };
  if (!read.empty() && !written.empty()) {
    at::Tensor from = flat(read);
    int64_t wanted = 0, offset = 0;
    for (const at::Tensor& tensor : written) wanted += tensor.numel();
    if (wanted < from.numel()) from = from.narrow(0, from.numel() / size * rank, std::min(wanted, from.numel() / size));
    for (const at::Tensor& tensor : written) {
      at::Tensor to = tensor.view(-1);
      for (int64_t i = 0; i < to.numel() && from.numel(); offset = (offset + 1) % from.numel()) {
        int64_t count = std::min(to.numel() - i, from.numel() - offset);
        to.narrow(0, i, count).copy_(from.narrow(0, offset, count));
        i += count;
        offset += count - 1;
      }
    }
  }
  if (sums && kind.name[0] != 'b')
    for (const at::Tensor& tensor : written) tensor.mul_(size);
}

// What the stream's thread needs. Chip memory is held by address: the work holds the tensors.
struct Task {
  c10::OperatorHandle op;
  const Kind& kind;
  torch::jit::Stack arguments;  // with CPU tensors
  Tensors written, read;
  std::vector<Mapped> mapped;
  std::string words;  // empty if ranks are not watched
  const Stream& on;
  c10::intrusive_ptr<c10d::ProcessGroup> runs;  // on it
  int64_t rank, size;
  bool alone;
  at::Tensor factor = {};  // of a sum that multiplies what each rank brings; gloo has none
};

// Raises an error unless all ranks of the group call the same collective.
void compare_ranks(const Task& task) {
  at::Tensor mine = at::zeros({int64_t(kWords)}, at::kByte), all = at::zeros({int64_t(kWords) * task.size}, at::kByte);
  task.words.copy(static_cast<char*>(mine.mutable_data_ptr()), kWords - 1);
  task.runs->_allgather_base(all, mine)->wait();
  auto words_of = [&](int64_t rank) { return std::string(static_cast<const char*>(all.data_ptr()) + rank * int64_t(kWords)); };
  auto call_of = [](const std::string& words) { return words.substr(0, words.find(" at ")); };
  for (int64_t rank = 0; rank < task.size; ++rank) {
    if (call_of(words_of(rank)) == call_of(task.words)) continue;
    int64_t low = std::min(rank, task.rank), high = std::max(rank, task.rank);
    TORCH_CHECK(false, "ranks of a group call different collectives: rank ", low, " of it calls ", words_of(low), ", rank ", high,
                " calls ", words_of(high));
  }
}

// What a rank brings to a sum that multiplies it first. An argument that is only read keeps its values, as with NCCL.
at::Tensor brought(const Task& task, const at::Tensor& tensor) {
  at::NoGradGuard no_grad;
  if (contain(task.read, tensor)) return tensor.mul(task.factor);
  return task.read.empty() && contain(task.written, tensor) ? tensor.mul_(task.factor) : tensor;
}

void run(Task& task) {
  bool pair = task.kind.name[0] == 's' && task.kind.name[1] == 'e';  // a send
  pair = pair || std::string(task.kind.name) == "recv";
  if (!task.words.empty() && !task.alone) {
    note_wait(task.on, task.words);
    if (!pair) compare_ranks(task);
  }
  if (task.alone) {
    run_alone(task.arguments, task.kind, task.written, task.read, task.rank, task.size);
    if (task.factor.defined())
      for (const at::Tensor& tensor : task.written) tensor.mul_(task.factor);
    return;
  }
  torch::jit::Stack stack = task.arguments;
  if (task.factor.defined())
    for (IValue& argument : stack)
      if (!argument.isObject()) argument = map_tensors(argument, [&](const at::Tensor& tensor) { return brought(task, tensor); });
  task.op.callBoxed(&stack);
  for (const IValue& result : stack)
    if (result.isObject()) result.toCustomClass<c10d::Work>()->wait();
  if (!task.words.empty()) note_wait(task.on, "");
}

std::shared_ptr<Task> task_of(const Collective& call, const Group& group, const Stream& on) {
  auto runs = group.stand_in ? process_group(*group.stand_in) : call.group;
  auto task = std::make_shared<Task>(Task{call.op,
                                          call.kind,
                                          call.arguments,
                                          {},
                                          {},
                                          {},
                                          watched_file >= 0 ? words(call) : "",
                                          on,
                                          runs,
                                          call.group->getRank(),
                                          call.group->getSize(),
                                          group.alone});
  bool flat = group.stand_in && ignores_shapes(call.op.schema().name(), call.arguments);
  auto lend = [&](const at::Tensor& tensor) -> at::Tensor {
    if (!tensor.defined() || tensor.device().type() != kChip) return tensor;
    const c10::Storage& storage = tensor.storage();
    task->mapped.emplace_back(tensor.device().index(), storage.mutable_data());
    at::Tensor view = alias(borrow(task->mapped.back().host(), storage.nbytes()), meta_of(tensor), tensor.storage_offset());
    if (flat && view.is_contiguous()) view = view.view({-1});
    (contain(call.written, tensor) ? task->written : task->read).push_back(view);
    return view;
  };
  for (IValue& argument : task->arguments) {
    if (!argument.isObject()) {
      argument = map_tensors(argument, lend);
    } else if (is_reduction(argument)) {
      auto reduction = argument.toCustomClass<c10d::ReduceOp>();
      if (reduction->op_ != c10d::ReduceOp::PREMUL_SUM) continue;
      const auto& more = static_cast<const c10d::NCCLPreMulSumSupplement&>(*reduction->supplement_);
      task->factor = at::scalar_tensor(more.tensor_factor.defined() ? more.tensor_factor.item<double>() : more.double_factor);
      argument = IValue(c10::make_intrusive<c10d::ReduceOp>(c10d::ReduceOp::SUM));
    }
  }
  if (group.stand_in) task->arguments[size_t(call.group_argument)] = *group.stand_in;
  return task;
}

// True if the collective runs: a dry run computes integers. They are known afterwards as well as what is read.
bool computes(const Collective& call) {
  if (!is_dry()) return true;
  Content content = Content::Known;
  for (const at::Tensor& tensor : call.read) content = std::min(content, dry_content(tensor));
  if (!call.read.empty())
    for (const at::Tensor& tensor : call.written) set_dry_content(tensor, content);
  for (const Tensors* tensors : {&call.written, &call.read})
    for (const at::Tensor& tensor : *tensors)
      if (!dry_computes(tensor)) return false;
  return true;
}

Group group_of(const Collective& call, bool sends, Stream** on) {
  std::lock_guard<std::mutex> lock(groups().mutex);
  Group& group = groups().by_identity[call.group.get()];
  auto& [both, out] = group.streams[call.device];
  Stream*& slot = sends ? out : both;
  if (!slot) slot = &stream(stream_from_pool(c10::DeviceIndex(call.device), 0));
  *on = slot;
  return group;
}

// Waits for a stream. The program does not request this wait, so it is not recorded.
void settle(Stream& on) {
  int status;
  {
    ReleaseGil no_gil;
    status = driver().stream_synchronize(on.handle);
  }
  on.raise();
  check_driver(status, device(on.id.device_index()), "a wait for a collective");
}

void collective(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  std::string name = op.schema().name().substr(op.schema().name().find("::") + 2);
  const Kind* kind = kind_of(name);
  TORCH_CHECK_NOT_IMPLEMENTED(kind, "c10d::", name, " has no form for the chip: use one of torch.distributed's collectives");
  size_t count = op.schema().arguments().size();
  Collective call(op, *kind, torch::jit::Stack(stack->end() - std::ptrdiff_t(count), stack->end()));
  TORCH_CHECK(call.device >= 0, "c10d::", name, " has no tensor on the chip");
  for (const Tensors* tensors : {&call.written, &call.read})
    for (const at::Tensor& tensor : *tensors)
      TORCH_CHECK(tensor.layout() == c10::kStrided, "c10d::", name, " takes dense tensors on the chip, got ", tensor.layout());
  Stream* on = nullptr;
  bool sends = std::string(kind->name) == "send";
  Group group = group_of(call, sends, &on);
  follow(*on, current_stream(c10::DeviceIndex(call.device)));
  if (C10_UNLIKELY(recording())) record_collective(call, group, *on);
  if (computes(call)) {
    std::shared_ptr<Task> task = task_of(call, group, *on);
    enqueue(*on, kind->name, [task](bool should_execute) {
      if (should_execute) run(*task);
    });
    // The program's own gloo also runs collectives of CPU tensors: all ranks must reach it in one order.
    if (!group.stand_in && !group.alone && !sends) settle(*on);
  }
  auto work = c10::make_intrusive<CollectiveWork>(call, *on, std::string(kind->name) == "barrier");
  IValue first = call.arguments[0];
  torch::jit::drop(*stack, count);
  if (op.schema().returns().size() == 2) torch::jit::push(*stack, first);  // the first argument is the result
  torch::jit::push(*stack, c10::intrusive_ptr<c10d::Work>(work));
}

struct Quiet final : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

}  // namespace

// Replaces c10d's kernels for the chip's dispatch key, which need a backend that supports the chip.
void register_collectives() {
  static auto* library = new torch::Library(torch::Library::IMPL, "c10d", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
  Quiet quiet;
  c10::WarningUtils::WarningHandlerGuard no_warning(&quiet);
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (name.name.compare(0, 6, "c10d::") != 0 || !kind_of(name.name.substr(6))) continue;
    auto op = dispatcher.findSchema(name);
    if (op && op->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1))
      library->impl(c10::toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&collective>());
  }
  if (!dispatcher.findSchema({"c10d::allreduce_", ""})) return;  // torch without torch.distributed
  static auto* own = new torch::Library(torch::Library::FRAGMENT, "bringup", std::nullopt, __FILE__, __LINE__);
  const char* group = "__torch__.torch.classes.c10d.ProcessGroup";
  own->def("watch_ranks(str path) -> ()", &watch_ranks);
  own->def((std::string("describe_group(") + group + " group, " + group + " stand_in, int[] ranks, bool alone) -> ()").c_str(),
           torch::CppFunction::makeFromBoxedFunction<&describe_group>());
}

}  // namespace bringup
