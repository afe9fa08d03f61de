// Every file of this folder but dispatch.cpp is compiled once per instruction set, in a namespace of its own.
#pragma once

#include "kernels.h"

#define GGM_DECLARE_ISA(name)                            \
  namespace ggm::cpu::name {                             \
  bool corrupt(const CorruptArgs& args, int threads);    \
  void philox(const PhiloxArgs& args);                   \
  }

GGM_DECLARE_ISA(v4)
GGM_DECLARE_ISA(v3)
GGM_DECLARE_ISA(v2)
GGM_DECLARE_ISA(plain)
