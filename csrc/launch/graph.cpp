#include "launch/graph.h"

#include <torch/library.h>

#include <unordered_map>
#include <unordered_set>

#include "launch/dry.h"
#include "launch/native.h"
#include "runtime/memory.h"

namespace bringup {

// Note [Graphs]
// A captured launch does not run: its results are allocated, and the launch is kept. A replay enqueues copies of all launches on
// the current stream, in the order of the capture, on the same addresses. Memory that launches of a capture allocate comes from
// an arena, which nothing else uses while one of its graphs lives. So a result that is freed inside the capture is used again by
// later launches of the same graph only. Random numbers are drawn from the generator at every replay.
namespace {

struct Node {
  std::unique_ptr<Launch> launch;
  uint8_t flags;  // of its row
};

struct Graph {
  int64_t arena = 0;
  int device = 0;
  bool captured = false;
  std::string refused;  // why the capture failed
  std::vector<Node> nodes;
  std::unordered_set<Stream*> replayed_on;
};

struct Graphs {
  std::mutex mutex;
  std::unordered_map<int64_t, std::shared_ptr<Graph>> graphs;
  std::unordered_map<int64_t, int64_t> users;  // arena -> its graphs
  std::shared_ptr<Capture> capture;            // at most one at a time in a process
  int64_t next_graph = 1, next_arena = 1;
};

Graphs& all() {
  static auto* graphs = new Graphs();
  return *graphs;
}

std::shared_ptr<Graph> graph_of(int64_t id) {
  std::lock_guard<std::mutex> lock(all().mutex);
  auto entry = all().graphs.find(id);
  TORCH_CHECK(entry != all().graphs.end(), "this graph has been reset: capture it again");
  return entry->second;
}

int64_t new_arena() {
  std::lock_guard<std::mutex> lock(all().mutex);
  return all().next_arena++;
}

int64_t new_graph() {
  std::lock_guard<std::mutex> lock(all().mutex);
  all().graphs[all().next_graph] = std::make_shared<Graph>();
  return all().next_graph++;
}

void begin_capture(int64_t id, int64_t arena) {
  auto graph = graph_of(id);
  Stream& stream = current_stream(current_device());
  TORCH_CHECK(!graph->captured && graph->arena == 0, "this graph holds a capture: call reset() before another one");
  TORCH_CHECK(stream.id.id() != 0, "the default stream cannot be captured: use torch.chip.graph, or capture on another stream");
  std::lock_guard<std::mutex> lock(all().mutex);
  TORCH_CHECK(!all().capture, "another graph is being captured: end that capture first");
  graph->arena = arena;
  graph->device = stream.id.device_index();
  ++all().users[arena];
  all().capture = std::make_shared<Capture>();
  all().capture->graph = id;
  all().capture->arena = arena;
  all().capture->device = graph->device;
  all().capture->join(stream);
}

void end_capture(int64_t id) {
  auto graph = graph_of(id);
  std::lock_guard<std::mutex> lock(all().mutex);
  TORCH_CHECK(all().capture && all().capture->graph == id, "this graph is not being captured: call capture_begin first");
  for (Stream* stream : all().capture->streams) stream->capture = nullptr;
  graph->refused = all().capture->refused;
  graph->captured = graph->refused.empty();
  all().capture->over = true;
  all().capture.reset();
}

void record_node(const Launch& launch, uint8_t flags, const Stream& stream, int64_t replay) {
  LaunchRow row{*launch.signature, launch.arguments.data(), stream, launch.line, {}, {}};
  row.replay = replay;
  // Memory that was freed after the launch was captured may belong to another tensor when the row is read.
  auto live = [&](const StorageRef& storage) {
    return is_live(launch.stream->id.device_index(), storage.address, storage.allocation);
  };
  for (const StorageRef& storage : launch.storages) row.storages.push_back(live(storage) ? storage : StorageRef{});
  for (const StorageRef& output : launch.outputs)
    if (live(output)) row.outputs.push_back(output.address);
  record_launch(row, flags);
}

void replay_graph(int64_t id) {
  auto graph = graph_of(id);
  TORCH_CHECK(graph->refused.empty(), "this graph cannot be replayed, because its capture failed: ", graph->refused);
  TORCH_CHECK(graph->captured, "this graph has nothing to replay: capture it first");
  Stream& stream = current_stream(c10::DeviceIndex(graph->device));
  refuse_capture(stream, "a replay of a graph", "replay it outside of the capture");
  graph->replayed_on.insert(&stream);
  int64_t number = recording() ? next_replay() : 0;
  for (const Node& node : graph->nodes) {
    ++counters().launches;
    if (C10_UNLIKELY(recording())) record_node(*node.launch, node.flags, stream, number);
    if (C10_UNLIKELY(is_dry())) continue;
    auto launch = std::make_unique<Launch>(*node.launch);
    launch->stream = &stream;
    launch->number = counters().launches;
    start_launch(std::move(launch));
  }
  if (C10_UNLIKELY(launch_blocking())) synchronize(stream);
}

void reset_graph(int64_t id) {
  std::shared_ptr<Graph> graph;
  bool last = false;
  {
    std::lock_guard<std::mutex> lock(all().mutex);
    auto entry = all().graphs.find(id);
    if (entry == all().graphs.end()) return;
    TORCH_CHECK(!all().capture || all().capture->graph != id, "this graph is being captured: end the capture first");
    graph = std::exchange(entry->second, std::make_shared<Graph>());
    last = graph->arena && --all().users[graph->arena] == 0;
    if (last) all().users.erase(graph->arena);
  }
  if (last && !forked()) retire_arena(graph->device, graph->arena, graph->replayed_on);
}

void drop_graph(int64_t id) {
  reset_graph(id);
  std::lock_guard<std::mutex> lock(all().mutex);
  all().graphs.erase(id);
}

}  // namespace

void Capture::join(Stream& stream) {
  if (stream.capture == this) return;
  stream.capture = this;
  streams.push_back(&stream);
}

void refuse_capture(Stream& stream, const std::string& about, const char* instead) {
  Capture* capture = stream.capture;
  if (C10_LIKELY(!capture)) return;
  std::string reason = about + " cannot be captured in a graph: " + instead;
  if (capture->refused.empty()) capture->refused = reason;
  TORCH_CHECK(false, reason);
}

void refuse_capture(int device, const std::string& about, const char* instead) {
  Stream* capturing = nullptr;
  {
    std::lock_guard<std::mutex> lock(all().mutex);
    if (all().capture && all().capture->device == device) capturing = all().capture->streams.front();
  }
  if (capturing) refuse_capture(*capturing, about, instead);
}

void capture_launch(std::unique_ptr<Launch> launch, uint8_t flags) {
  auto graph = graph_of(launch->stream->capture.load()->graph);
  graph->nodes.push_back({std::move(launch), flags});
}

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("new_arena() -> int", &new_arena);
  m.def("new_graph() -> int", &new_graph);
  m.def("begin_capture(int graph, int arena) -> ()", &begin_capture);
  m.def("end_capture(int graph) -> ()", &end_capture);
  m.def("replay_graph(int graph) -> ()", &replay_graph);
  m.def("reset_graph(int graph) -> ()", &reset_graph);
  m.def("drop_graph(int graph) -> ()", &drop_graph);
  m.def("graph_launches(int graph) -> int", [](int64_t id) { return int64_t(graph_of(id)->nodes.size()); });
  m.def("is_capturing() -> bool", [] { return opened() && current_stream(current_device()).capture.load() != nullptr; });
}

}  // namespace bringup
