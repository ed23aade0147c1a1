"""Write the module ramet._syscalls: the names and numbers of the kernel's headers.

    python syscalls.py OUTPUT COMPILER...

Run at build time, for the architecture that the compiler is for.
"""

import re
import subprocess
import sys

output, *compiler = sys.argv[1:]
command = [*compiler, "-E", "-dM", "-include", "asm/unistd.h", "-xc", "/dev/null"]
macros = subprocess.run(command, check=True, capture_output=True, text=True).stdout
# __NR3264_: what is __NR_ for one word size or the other (asm-generic/unistd.h).
values = dict(re.findall(r"^#define __NR(?:3264)?_(\w+) (\S+)$", macros, re.MULTILINE))
numbers = {name: int(value) for name, value in values.items() if value.isdigit()}
numbers.pop("syscalls", None)  # how many there are
if "execve" not in numbers:
    sys.exit("asm/unistd.h has no numbers")
with open(output, "w", encoding="ascii") as module:
    module.write('"""Numbers of system calls. Written by the build."""\n\nNUMBERS = {\n')
    module.writelines(f'    "{name}": {numbers[name]},\n' for name in sorted(numbers))
    module.write("}\n")
