# `make core`: compiles one object per file, so that a change rebuilds little. Releases compile core.cpp as a whole (setup.py).
PYTHON ?= python3
BUILD := build/core
TORCH := $(shell $(PYTHON) -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
FILE := PYTHONPATH=src $(PYTHON) -c 'import sys; from bringup.core_build import *; print(eval(sys.argv[1]).file)'
CORE := src/bringup/$(shell $(FILE) 'core_library(find_torch())')
REPLAY := src/bringup/$(shell $(FILE) 'replay_library()')
JAX := src/bringup/$(shell $(FILE) 'jax_library()')
APART := csrc/record/timeline.cpp csrc/jax/plugin.cpp $(filter-out csrc/drivers/virtual.cpp,$(wildcard csrc/drivers/*.cpp))
OBJECTS := $(patsubst csrc/%.cpp,$(BUILD)/%.o,$(filter-out $(APART),$(wildcard csrc/*/*.cpp)))
PRECOMPILED := $(BUILD)/precompiled.h.gch
COMPILE := $(CXX) @csrc/flags -fPIC -MMD -MP -isystem $(TORCH)/include -isystem $(TORCH)/include/kineto
.DELETE_ON_ERROR:
.PHONY: all

all: $(CORE) $(REPLAY) $(JAX)

# The new core is linked under another name and then moved, since processes may be using the old one.
$(CORE): $(OBJECTS)
	$(CXX) -shared $^ -L$(TORCH)/lib -lc10 -ltorch_cpu -ltorch @csrc/link_flags -o $(BUILD)/core.so
	rm -f src/bringup/_core.*
	mv $(BUILD)/core.so $@

# The replay is a library of its own, which needs nothing of torch.
$(REPLAY): csrc/record/timeline.cpp csrc/record/rows.h csrc/record/rows.inc csrc/flags csrc/core.mk
	@mkdir -p $(BUILD)
	$(CXX) @csrc/flags -fPIC -shared $< @csrc/link_flags -o $(BUILD)/replay.so
	rm -f src/bringup/_replay.*
	mv $(BUILD)/replay.so $@

# So is the plug-in of JAX.
$(JAX): csrc/jax/plugin.cpp csrc/jax/xla/pjrt_c_api.h csrc/flags csrc/core.mk
	@mkdir -p $(BUILD)
	$(CXX) @csrc/flags -DNDEBUG -fPIC -shared $< @csrc/link_flags -o $(BUILD)/jax.so
	rm -f src/bringup/_jax.*
	mv $(BUILD)/jax.so $@

$(BUILD)/%.o: csrc/%.cpp $(PRECOMPILED) csrc/flags csrc/core.mk $(TORCH)/version.py
	@mkdir -p $(@D)
	$(COMPILE) -I$(BUILD) -include precompiled.h -c $< -o $@

# The virtual chip includes no header of torch.
$(BUILD)/drivers/%.o: csrc/drivers/%.cpp csrc/flags csrc/core.mk
	@mkdir -p $(@D)
	$(COMPILE) -c $< -o $@

$(PRECOMPILED): csrc/precompiled.h csrc/flags csrc/core.mk $(TORCH)/version.py
	@mkdir -p $(@D)
	$(COMPILE) -x c++-header $< -o $@

-include $(OBJECTS:.o=.d)
