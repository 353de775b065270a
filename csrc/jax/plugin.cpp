// The chips as PJRT devices of JAX. They have no compiler and no memory of their own: bringup/frontends/jax/client.py compiles,
// executes and holds tensors, which have numbers here.
#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "jax/xla/pjrt_c_api.h"

using Number = int64_t;

// Functions of Python. A negative result is a failure, which `bringup_fail` has described.
struct Hooks {
  Number (*compile)(const char* code, size_t size, const char* options, size_t options_size, void* program);
  Number (*execute)(Number program, int64_t inputs, const Number* numbers, const int8_t* donated, Number* results);
  Number (*upload)(const void* data, int type, int64_t rank, const int64_t* sizes, const int64_t* strides, int device);
  Number (*download)(Number tensor, void* to);
  Number (*bytes)(Number tensor);
  Number (*copy)(Number tensor, int device);
  Number (*wait)(Number tensor);
  Number (*memory)(int device, int64_t* now, int64_t* peak, int64_t* limit, int64_t* allocations);
};

struct Failure {
  PJRT_Error_Code code = PJRT_Error_Code_INTERNAL;
  std::string text;
};

struct PJRT_Error {
  Failure failure;
};

// A program of JAX, and what it returns; shared by PJRT's two views of it.
struct Program {
  Number number = -1;
  std::string name = "main", options;
  std::vector<PJRT_Buffer_Type> types;
  std::vector<int64_t> sizes;  // of all results, one after the other
  std::vector<size_t> ranks;
  std::vector<const char*> kinds;
  std::vector<size_t> kind_lengths;
  std::vector<int64_t> donated;  // inputs whose memory the program may take
  std::vector<PJRT_Device*> devices;
  std::string partitioned;  // xla.HloModuleProtoWithConfig of a program of several devices: has the shardings of its results
  ~Program();
};

struct PJRT_Executable {
  std::shared_ptr<Program> program;
};
struct PJRT_LoadedExecutable {
  std::shared_ptr<Program> program;
  bool is_deleted = false;
};
struct PJRT_Buffer {
  Number tensor;
  int device;
  PJRT_Buffer_Type type;
  std::vector<int64_t> sizes;
  bool is_deleted = false;
};
// Ready when a tensor is; tensor -1 is ready from the start.
struct PJRT_Event {
  std::atomic<Number> tensor = -1;
  std::unique_ptr<Failure> failure;
  std::mutex mutex;  // of the failure
};
struct PJRT_DeviceAssignmentSerialized {
  std::string bytes;
};
struct PJRT_Client {};
struct PJRT_Device {
  int id;
};
struct PJRT_DeviceDescription {
  int id;
};
struct PJRT_Memory {
  int id;
};
struct PJRT_TopologyDescription {};

namespace {

std::atomic<const Hooks*> hooks;  // none before Python has begun, and after it has ended; never freed
std::string device_kind;
int64_t stablehlo_version[3];
thread_local Failure last_failure;

PJRT_Client client;
PJRT_TopologyDescription topology;
std::vector<PJRT_Device*> devices;  // one for each chip, never freed, as what follows
std::vector<PJRT_DeviceDescription*> descriptions;
std::vector<PJRT_Memory*> memories;
std::vector<std::string> names;
constexpr size_t kMostDims = 64;  // of a tensor of torch
constexpr std::string_view kPlatform = "chip", kMemory = "device", kFormat = "hlo_with_config";

// JAX frees buffers at any time, also with an exception pending and after Python's end, so Python collects their numbers later.
struct Freed {
  std::mutex mutex;
  std::vector<Number> numbers;
  void add(Number number) {
    std::lock_guard<std::mutex> lock(mutex);
    numbers.push_back(number);
  }
};
Freed& freed = *new Freed();  // never destroyed: buffers may outlive the library's static objects

PJRT_Error* refuse(PJRT_Error_Code code, std::string text) { return new PJRT_Error{{code, std::move(text)}}; }

// Calls a function of Python; `result` is what it returned.
template <class... Parameters, class... Arguments>
PJRT_Error* call(Number& result, Number (*Hooks::*hook)(Parameters...), Arguments... arguments) {
  const Hooks* functions = hooks;
  if (!functions) return refuse(PJRT_Error_Code_FAILED_PRECONDITION, "the chip cannot be used after Python has ended");
  last_failure = {};
  result = (functions->*hook)(arguments...);
  if (result >= 0) return nullptr;
  if (last_failure.code == PJRT_Error_Code_CANCELLED) std::raise(SIGINT);  // the program is to see the interrupt, too
  return new PJRT_Error{last_failure};
}

template <class Place, class Value>
PJRT_Error* put(Place& place, Value value) {
  place = value;
  return nullptr;
}

template <class Item, class Value, class Count>
PJRT_Error* put_list(Item& items, Count& count, Value value, size_t length) {
  items = value;
  count = length;
  return nullptr;
}

template <class Items, class Count, class Item>
PJRT_Error* put_all(Items& items, Count& count, const std::vector<Item>& values) {
  return put_list(items, count, values.data(), values.size());
}

template <class Text, class Count>
PJRT_Error* put_text(Text& text, Count& count, std::string_view value) {
  return put_list(text, count, value.data(), value.size());
}

// Waits until an event is ready. Several threads may wait for one: the lock is not held meanwhile, as Python's may be.
PJRT_Error* settle(PJRT_Event* event) {
  Number tensor = event->tensor, result = 0;
  std::unique_ptr<PJRT_Error> error(tensor < 0 ? nullptr : call(result, &Hooks::wait, tensor));
  std::lock_guard<std::mutex> lock(event->mutex);
  if (error && !event->failure) event->failure = std::make_unique<Failure>(error->failure);
  event->tensor = -1;
  return event->failure ? new PJRT_Error{*event->failure} : nullptr;
}

template <int entry>
PJRT_Error* missing(void*) {
  return refuse(PJRT_Error_Code_UNIMPLEMENTED,
                "bringup's plug-in for JAX does not provide entry " + std::to_string(entry) + " of PJRT");
}

template <int... entries>
void fill(void** table, std::integer_sequence<int, entries...>) {
  ((table[entries] = reinterpret_cast<void*>(&missing<entries>)), ...);
}

template <class Arguments>
PJRT_Error* no_dlpack(Arguments*) {
  return refuse(PJRT_Error_Code_UNIMPLEMENTED,
                "an array on the chip has no address that another framework can use: pass numpy.asarray(array)");
}

template <class Arguments>
PJRT_Error* no_files(Arguments*) {
  return refuse(PJRT_Error_Code_UNIMPLEMENTED, "programs for the chip are not saved: lower and compile them again");
}

bool is_row_major(const PJRT_Buffer_MemoryLayout* layout) {
  if (!layout) return true;
  if (layout->type != PJRT_Buffer_MemoryLayout_Type_Tiled || layout->tiled.num_tiles) return false;
  auto& tiled = layout->tiled;
  for (size_t i = 0; i < tiled.minor_to_major_size; ++i)
    if (tiled.minor_to_major[i] != int64_t(tiled.minor_to_major_size - 1 - i)) return false;
  return true;
}

void free_tensor(PJRT_Buffer* buffer) {
  if (!std::exchange(buffer->is_deleted, true)) freed.add(buffer->tensor);
}

PJRT_Error* refuse_deleted(const PJRT_Buffer* buffer) {
  if (!buffer->is_deleted) return nullptr;
  return refuse(PJRT_Error_Code_INVALID_ARGUMENT, "the array has been deleted or donated");
}

PJRT_Error* copied(PJRT_Buffer* buffer, int device, PJRT_Buffer*& copy) {
  if (auto* error = refuse_deleted(buffer)) return error;
  Number tensor = 0;
  if (auto* error = call(tensor, &Hooks::copy, buffer->tensor, device)) return error;
  return put(copy, new PJRT_Buffer{tensor, device, buffer->type, buffer->sizes});
}

void add_plugin(PJRT_Api& api) {
  api.PJRT_Error_Destroy = [](PJRT_Error_Destroy_Args* a) { delete a->error; };
  api.PJRT_Error_Message = [](PJRT_Error_Message_Args* a) { put_text(a->message, a->message_size, a->error->failure.text); };
  api.PJRT_Error_GetCode = [](PJRT_Error_GetCode_Args* a) { return put(a->code, a->error->failure.code); };
  api.PJRT_Plugin_Initialize = [](PJRT_Plugin_Initialize_Args*) -> PJRT_Error* { return nullptr; };
  api.PJRT_Plugin_Attributes = [](PJRT_Plugin_Attributes_Args* a) {
    static PJRT_NamedValue version{};
    version.struct_size = PJRT_NamedValue_STRUCT_SIZE;
    put_text(version.name, version.name_size, "stablehlo_current_version");
    version.type = PJRT_NamedValue_kInt64List;
    version.int64_array_value = stablehlo_version;
    version.value_size = 3;
    return put_list(a->attributes, a->num_attributes, &version, 1);
  };
  api.PJRT_Event_Destroy = [](PJRT_Event_Destroy_Args* a) -> PJRT_Error* {
    delete a->event;
    return nullptr;
  };
  api.PJRT_Event_IsReady = [](PJRT_Event_IsReady_Args* a) { return put(a->is_ready, a->event->tensor < 0); };
  api.PJRT_Event_Error = [](PJRT_Event_Error_Args* a) { return settle(a->event); };
  api.PJRT_Event_Await = [](PJRT_Event_Await_Args* a) { return settle(a->event); };
  api.PJRT_Event_OnReady = [](PJRT_Event_OnReady_Args* a) -> PJRT_Error* {
    a->callback(settle(a->event), a->user_arg);  // JAX asks for this only when it waits for an array
    return nullptr;
  };
}

PJRT_Error* look_up(PJRT_Device*& place, int id) {
  if (id >= 0 && size_t(id) < devices.size()) return put(place, devices[size_t(id)]);
  return refuse(PJRT_Error_Code_INVALID_ARGUMENT, "there is no chip:" + std::to_string(id));
}

void add_client(PJRT_Api& api) {
  api.PJRT_Client_Create = [](PJRT_Client_Create_Args* a) { return put(a->client, &client); };
  api.PJRT_Client_Destroy = [](PJRT_Client_Destroy_Args*) -> PJRT_Error* { return nullptr; };
  api.PJRT_Client_PlatformName = [](PJRT_Client_PlatformName_Args* a) {
    return put_text(a->platform_name, a->platform_name_size, kPlatform);
  };
  api.PJRT_Client_PlatformVersion = [](PJRT_Client_PlatformVersion_Args* a) {
    return put_text(a->platform_version, a->platform_version_size, device_kind);
  };
  api.PJRT_Client_ProcessIndex = [](PJRT_Client_ProcessIndex_Args* a) { return put(a->process_index, 0); };
  api.PJRT_Client_Devices = [](PJRT_Client_Devices_Args* a) { return put_all(a->devices, a->num_devices, devices); };
  api.PJRT_Client_AddressableDevices = [](PJRT_Client_AddressableDevices_Args* a) {
    return put_all(a->addressable_devices, a->num_addressable_devices, devices);
  };
  api.PJRT_Client_AddressableMemories = [](PJRT_Client_AddressableMemories_Args* a) {
    return put_all(a->addressable_memories, a->num_addressable_memories, memories);
  };
  api.PJRT_Client_LookupDevice = [](PJRT_Client_LookupDevice_Args* a) { return look_up(a->device, a->id); };
  api.PJRT_Client_LookupAddressableDevice = [](PJRT_Client_LookupAddressableDevice_Args* a) {
    return look_up(a->addressable_device, a->local_hardware_id);
  };
  api.PJRT_Client_DefaultDeviceAssignment = [](PJRT_Client_DefaultDeviceAssignment_Args* a) -> PJRT_Error* {
    size_t count = size_t(a->num_replicas) * size_t(a->num_partitions);
    if (count > devices.size())
      return refuse(PJRT_Error_Code_INVALID_ARGUMENT, "a program needs more devices than there are chips");
    std::iota(a->default_assignment, a->default_assignment + count, 0);
    return nullptr;
  };
  api.PJRT_Client_TopologyDescription = [](PJRT_Client_TopologyDescription_Args* a) { return put(a->topology, &topology); };
  api.PJRT_TopologyDescription_Destroy = [](PJRT_TopologyDescription_Destroy_Args*) -> PJRT_Error* { return nullptr; };
  api.PJRT_TopologyDescription_PlatformName = [](PJRT_TopologyDescription_PlatformName_Args* a) {
    return put_text(a->platform_name, a->platform_name_size, kPlatform);
  };
  api.PJRT_TopologyDescription_PlatformVersion = [](PJRT_TopologyDescription_PlatformVersion_Args* a) {
    return put_text(a->platform_version, a->platform_version_size, device_kind);
  };
  api.PJRT_TopologyDescription_GetDeviceDescriptions = [](PJRT_TopologyDescription_GetDeviceDescriptions_Args* a) {
    return put_all(a->descriptions, a->num_descriptions, descriptions);
  };
  api.PJRT_TopologyDescription_Attributes = [](PJRT_TopologyDescription_Attributes_Args* a) {
    return put_list(a->attributes, a->num_attributes, nullptr, 0);
  };
}

void add_device(PJRT_Api& api) {
  api.PJRT_Device_GetDescription = [](PJRT_Device_GetDescription_Args* a) {
    return put(a->device_description, descriptions[size_t(a->device->id)]);
  };
  api.PJRT_Device_IsAddressable = [](PJRT_Device_IsAddressable_Args* a) { return put(a->is_addressable, true); };
  api.PJRT_Device_LocalHardwareId = [](PJRT_Device_LocalHardwareId_Args* a) { return put(a->local_hardware_id, a->device->id); };
  api.PJRT_Device_AddressableMemories = [](PJRT_Device_AddressableMemories_Args* a) {
    return put_list(a->memories, a->num_memories, &memories[size_t(a->device->id)], 1);
  };
  api.PJRT_Device_DefaultMemory = [](PJRT_Device_DefaultMemory_Args* a) {
    return put(a->memory, memories[size_t(a->device->id)]);
  };
  api.PJRT_Device_MemoryStats = [](PJRT_Device_MemoryStats_Args* a) {
    a->largest_alloc_size_is_set = a->bytes_reserved_is_set = a->peak_bytes_reserved_is_set = false;
    a->bytes_reservable_limit_is_set = a->largest_free_block_bytes_is_set = false;
    a->pool_bytes_is_set = a->peak_pool_bytes_is_set = false;
    a->peak_bytes_in_use_is_set = a->bytes_limit_is_set = a->num_allocs_is_set = true;
    Number result = 0;
    return call(result, &Hooks::memory, a->device->id, &a->bytes_in_use, &a->peak_bytes_in_use, &a->bytes_limit, &a->num_allocs);
  };
  api.PJRT_DeviceDescription_Id = [](PJRT_DeviceDescription_Id_Args* a) { return put(a->id, a->device_description->id); };
  api.PJRT_DeviceDescription_ProcessIndex = [](PJRT_DeviceDescription_ProcessIndex_Args* a) { return put(a->process_index, 0); };
  api.PJRT_DeviceDescription_Attributes = [](PJRT_DeviceDescription_Attributes_Args* a) {
    return put_list(a->attributes, a->num_attributes, nullptr, 0);
  };
  api.PJRT_DeviceDescription_Kind = [](PJRT_DeviceDescription_Kind_Args* a) {
    return put_text(a->device_kind, a->device_kind_size, device_kind);
  };
  api.PJRT_DeviceDescription_DebugString = [](PJRT_DeviceDescription_DebugString_Args* a) {
    return put_text(a->debug_string, a->debug_string_size, names[size_t(a->device_description->id)]);
  };
  api.PJRT_DeviceDescription_ToString = [](PJRT_DeviceDescription_ToString_Args* a) {
    return put_text(a->to_string, a->to_string_size, names[size_t(a->device_description->id)]);
  };
  api.PJRT_Memory_Id = [](PJRT_Memory_Id_Args* a) { return put(a->id, a->memory->id); };
  api.PJRT_Memory_Kind = [](PJRT_Memory_Kind_Args* a) { return put_text(a->kind, a->kind_size, kMemory); };
  api.PJRT_Memory_Kind_Id = [](PJRT_Memory_Kind_Id_Args* a) { return put(a->kind_id, 0); };
  api.PJRT_Memory_DebugString = [](PJRT_Memory_DebugString_Args* a) {
    return put_text(a->debug_string, a->debug_string_size, kMemory);
  };
  api.PJRT_Memory_ToString = [](PJRT_Memory_ToString_Args* a) { return put_text(a->to_string, a->to_string_size, kMemory); };
  api.PJRT_Memory_AddressableByDevices = [](PJRT_Memory_AddressableByDevices_Args* a) {
    return put_list(a->devices, a->num_devices, &devices[size_t(a->memory->id)], 1);
  };
}

PJRT_Error* compile(PJRT_Client_Compile_Args* a) {
  auto program = std::make_shared<Program>();
  program->options.assign(a->compile_options, a->compile_options_size);
  if (auto* error = call(program->number, &Hooks::compile, a->program->code, a->program->code_size, a->compile_options,
                         a->compile_options_size, program.get()))
    return error;
  return put(a->executable, new PJRT_LoadedExecutable{std::move(program)});
}

// Returns as soon as all launches are enqueued.
PJRT_Error* execute(PJRT_LoadedExecutable_Execute_Args* a) {
  if (a->executable->is_deleted) return refuse(PJRT_Error_Code_INVALID_ARGUMENT, "the program has been deleted");
  Program& program = *a->executable->program;
  if (a->num_devices != program.devices.size())
    return refuse(PJRT_Error_Code_UNIMPLEMENTED, "a program of several chips runs on all of them in one call");
  const size_t inputs = a->num_args, outputs = program.types.size();
  std::vector<Number> numbers(a->num_devices * inputs), results(a->num_devices * outputs);
  std::vector<int8_t> donated(inputs);
  auto mark = [&](int64_t input, int8_t is_donated) {
    if (size_t(input) < inputs) donated[size_t(input)] = is_donated;  // Python refuses a wrong number of inputs
  };
  for (int64_t input : program.donated) mark(input, 1);
  for (size_t i = 0; i < a->options->num_non_donatable_input_indices; ++i) mark(a->options->non_donatable_input_indices[i], 0);
  std::unordered_set<Number> passed, taken;
  for (size_t i = 0; i < numbers.size(); ++i) {
    PJRT_Buffer* input = a->argument_lists[i / inputs][i % inputs];
    if (auto* error = refuse_deleted(input)) return error;
    numbers[i] = input->tensor;
    if (donated[i % inputs]) taken.insert(numbers[i]);
    if (!passed.insert(numbers[i]).second && taken.count(numbers[i]))
      return refuse(PJRT_Error_Code_INVALID_ARGUMENT, "an array is donated and passed once more in the same call");
  }
  for (size_t i = 0; i < numbers.size(); ++i)  // Python takes the tensor, also if the program fails
    if (donated[i % inputs]) a->argument_lists[i / inputs][i % inputs]->is_deleted = true;
  Number result = 0;
  if (auto* error =
          call(result, &Hooks::execute, program.number, int64_t(inputs), numbers.data(), donated.data(), results.data())) {
    for (Number number : taken) freed.add(number);  // those that Python did not get to
    return error;
  }
  for (size_t chip = 0; chip < a->num_devices; ++chip) {
    const int64_t* sizes = program.sizes.data();
    for (size_t i = 0; i < outputs; sizes += program.ranks[i++])
      a->output_lists[chip][i] = new PJRT_Buffer{
          results[chip * outputs + i], program.devices[chip]->id, program.types[i], {sizes, sizes + program.ranks[i]}};
    if (a->device_complete_events) a->device_complete_events[chip] = new PJRT_Event();  // arrays have events of their own
  }
  return nullptr;
}

void add_programs(PJRT_Api& api) {
  api.PJRT_Client_Compile = compile;
  api.PJRT_LoadedExecutable_Execute = execute;
  api.PJRT_LoadedExecutable_GetExecutable = [](PJRT_LoadedExecutable_GetExecutable_Args* a) {
    return put(a->executable, new PJRT_Executable{a->loaded_executable->program});
  };
  api.PJRT_LoadedExecutable_AddressableDevices = [](PJRT_LoadedExecutable_AddressableDevices_Args* a) {
    return put_all(a->addressable_devices, a->num_addressable_devices, a->executable->program->devices);
  };
  api.PJRT_LoadedExecutable_Destroy = [](PJRT_LoadedExecutable_Destroy_Args* a) -> PJRT_Error* {
    delete a->executable;
    return nullptr;
  };
  api.PJRT_LoadedExecutable_Delete = [](PJRT_LoadedExecutable_Delete_Args* a) { return put(a->executable->is_deleted, true); };
  api.PJRT_LoadedExecutable_IsDeleted = [](PJRT_LoadedExecutable_IsDeleted_Args* a) {
    return put(a->is_deleted, a->executable->is_deleted);
  };
  api.PJRT_LoadedExecutable_GetDeviceAssignment = [](PJRT_LoadedExecutable_GetDeviceAssignment_Args* a) {
    // xla.DeviceAssignmentProto: one replica on each device. All numbers are below 128, so each is a byte.
    auto* proto = new PJRT_DeviceAssignmentSerialized{{8, 1, 16, char(a->executable->program->devices.size())}};
    for (PJRT_Device* device : a->executable->program->devices) proto->bytes.append({26, 3, 10, 1, char(device->id)});
    a->serialized_device_assignment = proto;
    a->serialized_device_assignment_deleter = [](PJRT_DeviceAssignmentSerialized* proto) { delete proto; };
    return put_text(a->serialized_bytes, a->serialized_bytes_size, proto->bytes);
  };
  api.PJRT_Executable_Destroy = [](PJRT_Executable_Destroy_Args* a) -> PJRT_Error* {
    delete a->executable;
    return nullptr;
  };
  api.PJRT_Executable_Name = [](PJRT_Executable_Name_Args* a) {
    return put_text(a->executable_name, a->executable_name_size, a->executable->program->name);
  };
  api.PJRT_Executable_NumReplicas = [](PJRT_Executable_NumReplicas_Args* a) { return put(a->num_replicas, 1); };
  api.PJRT_Executable_NumPartitions = [](PJRT_Executable_NumPartitions_Args* a) {
    return put(a->num_partitions, a->executable->program->devices.size());
  };
  api.PJRT_Executable_NumOutputs = [](PJRT_Executable_NumOutputs_Args* a) {
    return put(a->num_outputs, a->executable->program->types.size());
  };
  api.PJRT_Executable_SizeOfGeneratedCodeInBytes = [](PJRT_Executable_SizeOfGeneratedCodeInBytes_Args* a) {
    return put(a->size_in_bytes, 0);
  };
  api.PJRT_Executable_Fingerprint = [](PJRT_Executable_Fingerprint_Args* a) {
    return put_text(a->executable_fingerprint, a->executable_fingerprint_size, "");
  };
  api.PJRT_Executable_OutputElementTypes = [](PJRT_Executable_OutputElementTypes_Args* a) {
    auto& types = a->executable->program->types;
    return put_list(a->output_types, a->num_output_types, types.data(), types.size());
  };
  api.PJRT_Executable_OutputDimensions = [](PJRT_Executable_OutputDimensions_Args* a) {
    Program& program = *a->executable->program;
    a->dims = program.sizes.data();
    return put_list(a->dim_sizes, a->num_outputs, program.ranks.data(), program.ranks.size());
  };
  api.PJRT_Executable_OutputMemoryKinds = [](PJRT_Executable_OutputMemoryKinds_Args* a) {
    Program& program = *a->executable->program;
    a->memory_kind_sizes = program.kind_lengths.data();
    return put_list(a->memory_kinds, a->num_outputs, program.kinds.data(), program.kinds.size());
  };
  api.PJRT_Executable_GetCompileOptions = [](PJRT_Executable_GetCompileOptions_Args* a) {
    a->serialized_compile_options = nullptr;
    a->serialized_compile_options_deleter = [](PJRT_SerializedCompileOptions*) {};
    return put_text(a->serialized_bytes, a->serialized_bytes_size, a->executable->program->options);
  };
  api.PJRT_Executable_OptimizedProgram = [](PJRT_Executable_OptimizedProgram_Args* a) -> PJRT_Error* {
    const std::string& text = a->executable->program->partitioned;
    if (text.empty())
      return refuse(PJRT_Error_Code_UNIMPLEMENTED, "a program of one chip has no optimized HLO: it runs as StableHLO");
    put_list(a->program->format, a->program->format_size, kFormat.data(), kFormat.size());
    if (a->program->code) std::memcpy(a->program->code, text.data(), std::min(a->program->code_size, text.size()));
    return put(a->program->code_size, text.size());
  };
  api.PJRT_Executable_Serialize = no_files;
  api.PJRT_Executable_DeserializeAndLoad = no_files;
}

void add_buffers(PJRT_Api& api) {
  api.PJRT_Client_BufferFromHostBuffer = [](PJRT_Client_BufferFromHostBuffer_Args* a) -> PJRT_Error* {
    Number tensor = 0;
    const int64_t* strides = a->num_byte_strides ? a->byte_strides : nullptr;
    int device = a->memory ? a->memory->id : a->device->id;
    if (auto* error = call(tensor, &Hooks::upload, a->data, int(a->type), int64_t(a->num_dims), a->dims, strides, device))
      return error;
    a->buffer = new PJRT_Buffer{tensor, device, a->type, {a->dims, a->dims + a->num_dims}};
    return put(a->done_with_host_buffer, new PJRT_Event());
  };
  api.PJRT_Buffer_Destroy = [](PJRT_Buffer_Destroy_Args* a) -> PJRT_Error* {
    free_tensor(a->buffer);
    delete a->buffer;
    return nullptr;
  };
  api.PJRT_Buffer_Delete = [](PJRT_Buffer_Delete_Args* a) -> PJRT_Error* {
    free_tensor(a->buffer);
    return nullptr;
  };
  api.PJRT_Buffer_IsDeleted = [](PJRT_Buffer_IsDeleted_Args* a) { return put(a->is_deleted, a->buffer->is_deleted); };
  api.PJRT_Buffer_ElementType = [](PJRT_Buffer_ElementType_Args* a) { return put(a->type, a->buffer->type); };
  api.PJRT_Buffer_Dimensions = [](PJRT_Buffer_Dimensions_Args* a) {
    return put_list(a->dims, a->num_dims, a->buffer->sizes.data(), a->buffer->sizes.size());
  };
  api.PJRT_Buffer_UnpaddedDimensions = [](PJRT_Buffer_UnpaddedDimensions_Args* a) {
    return put_list(a->unpadded_dims, a->num_dims, a->buffer->sizes.data(), a->buffer->sizes.size());
  };
  api.PJRT_Buffer_DynamicDimensionIndices = [](PJRT_Buffer_DynamicDimensionIndices_Args* a) {
    return put_list(a->dynamic_dim_indices, a->num_dynamic_dims, nullptr, 0);
  };
  api.PJRT_Buffer_GetMemoryLayout = [](PJRT_Buffer_GetMemoryLayout_Args* a) -> PJRT_Error* {
    static const auto orders = [] {  // of the most dimensions, innermost first; fewer are the end of it
      std::array<int64_t, kMostDims> falling{};
      for (size_t i = 0; i < kMostDims; ++i) falling[i] = int64_t(kMostDims - 1 - i);
      return falling;
    }();
    size_t rank = a->buffer->sizes.size();
    a->layout.type = PJRT_Buffer_MemoryLayout_Type_Tiled;
    a->layout.tiled = {};
    a->layout.tiled.struct_size = PJRT_Buffer_MemoryLayout_Tiled_STRUCT_SIZE;
    return put_list(a->layout.tiled.minor_to_major, a->layout.tiled.minor_to_major_size, orders.end() - rank, rank);
  };
  api.PJRT_Buffer_OnDeviceSizeInBytes = [](PJRT_Buffer_OnDeviceSizeInBytes_Args* a) -> PJRT_Error* {
    Number bytes = 0;
    if (auto* error = call(bytes, &Hooks::bytes, a->buffer->tensor)) return error;
    return put(a->on_device_size_in_bytes, size_t(bytes));
  };
  api.PJRT_Buffer_Device = [](PJRT_Buffer_Device_Args* a) { return put(a->device, devices[size_t(a->buffer->device)]); };
  api.PJRT_Buffer_Memory = [](PJRT_Buffer_Memory_Args* a) { return put(a->memory, memories[size_t(a->buffer->device)]); };
  api.PJRT_Buffer_IsOnCpu = [](PJRT_Buffer_IsOnCpu_Args* a) { return put(a->is_on_cpu, false); };
  api.PJRT_Buffer_ReadyEvent = [](PJRT_Buffer_ReadyEvent_Args* a) {
    return put(a->event, new PJRT_Event{a->buffer->is_deleted ? -1 : a->buffer->tensor, nullptr});
  };
  api.PJRT_Buffer_IncreaseExternalReferenceCount = [](PJRT_Buffer_IncreaseExternalReferenceCount_Args*) -> PJRT_Error* {
    return nullptr;
  };
  api.PJRT_Buffer_DecreaseExternalReferenceCount = [](PJRT_Buffer_DecreaseExternalReferenceCount_Args*) -> PJRT_Error* {
    return nullptr;
  };
  api.PJRT_Buffer_CopyToDevice = [](PJRT_Buffer_CopyToDevice_Args* a) {
    return copied(a->buffer, a->dst_device->id, a->dst_buffer);
  };
  api.PJRT_Buffer_CopyToMemory = [](PJRT_Buffer_CopyToMemory_Args* a) {
    return copied(a->buffer, a->dst_memory->id, a->dst_buffer);
  };
  api.PJRT_Buffer_ToHostBuffer = [](PJRT_Buffer_ToHostBuffer_Args* a) -> PJRT_Error* {
    Number bytes = 0;
    if (auto* error = refuse_deleted(a->src)) return error;
    if (!is_row_major(a->host_layout))
      return refuse(PJRT_Error_Code_UNIMPLEMENTED, "arrays of the chip are copied to the host in row-major order");
    if (auto* error = call(bytes, &Hooks::bytes, a->src->tensor)) return error;
    if (!a->dst) return put(a->dst_size, size_t(bytes));
    if (a->dst_size < size_t(bytes))
      return refuse(PJRT_Error_Code_INVALID_ARGUMENT,
                    "the host's buffer has " + std::to_string(a->dst_size) + " bytes, and the array " + std::to_string(bytes));
    if (auto* error = call(bytes, &Hooks::download, a->src->tensor, a->dst)) return error;
    return put(a->event, new PJRT_Event());
  };
  api.PJRT_Buffer_UnsafePointer = no_dlpack;
  api.PJRT_Buffer_OpaqueDeviceMemoryDataPointer = no_dlpack;
  api.PJRT_Client_CreateViewOfDeviceBuffer = no_dlpack;
}

PJRT_Api* make_api() {
  static PJRT_Api api{};
  api.struct_size = PJRT_Api_STRUCT_SIZE;
  api.pjrt_api_version = {PJRT_Api_Version_STRUCT_SIZE, nullptr, PJRT_API_MAJOR, PJRT_API_MINOR};
  constexpr int entries = (sizeof(PJRT_Api) - offsetof(PJRT_Api, PJRT_Error_Destroy)) / sizeof(void*);
  fill(reinterpret_cast<void**>(&api.PJRT_Error_Destroy), std::make_integer_sequence<int, entries>());
  add_plugin(api);
  add_client(api);
  add_device(api);
  add_programs(api);
  add_buffers(api);
  return &api;
}

}  // namespace

Program::~Program() {
  if (number >= 0) freed.add(number);
}

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const PJRT_Api* GetPjrtApi() {
  static const PJRT_Api* api = make_api();
  return api;
}

// Sets what Python does, the name of the chip, the number of chips, and the version of StableHLO that programs come in.
EXPORTED void bringup_start(const Hooks* functions, const char* kind, int chips, const int64_t* version) {
  for (int id = int(devices.size()); id < chips; ++id) {
    devices.push_back(new PJRT_Device{id});
    descriptions.push_back(new PJRT_DeviceDescription{id});
    memories.push_back(new PJRT_Memory{id});
    names.push_back("chip:" + std::to_string(id));
  }
  hooks = new Hooks(*functions);
  device_kind = kind;
  std::memcpy(stablehlo_version, version, sizeof stablehlo_version);
}

EXPORTED void bringup_stop() { hooks = nullptr; }

// Describes the failure of the hook that runs on this thread.
EXPORTED void bringup_fail(int code, const char* text) { last_failure = {PJRT_Error_Code(code), text}; }

EXPORTED void bringup_name(void* program, const char* name) { static_cast<Program*>(program)->name = name; }

EXPORTED void bringup_donate(void* program, int64_t input) { static_cast<Program*>(program)->donated.push_back(input); }

EXPORTED void bringup_device(void* program, int id) { static_cast<Program*>(program)->devices.push_back(devices[size_t(id)]); }

EXPORTED void bringup_partitioned(void* program, const char* text, size_t size) {
  static_cast<Program*>(program)->partitioned.assign(text, size);
}

EXPORTED void bringup_result(void* program, int type, int64_t rank, const int64_t* sizes) {
  auto& to = *static_cast<Program*>(program);
  to.types.push_back(PJRT_Buffer_Type(type));
  to.ranks.push_back(size_t(rank));
  to.sizes.insert(to.sizes.end(), sizes, sizes + rank);
  to.kinds.push_back(kMemory.data());
  to.kind_lengths.push_back(kMemory.size());
}

// Moves numbers of what JAX has freed into an array; returns how many.
EXPORTED int64_t bringup_freed(Number* numbers, int64_t room) {
  std::lock_guard<std::mutex> lock(freed.mutex);
  int64_t count = 0;
  for (; count < room && !freed.numbers.empty(); freed.numbers.pop_back()) numbers[count++] = freed.numbers.back();
  return count;
}
