// Stands in for the header of nvidia-cuda-crt, which only refuses host compilers that nvcc does not know. nvcc is not used.
#pragma once
