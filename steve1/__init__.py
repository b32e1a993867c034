__version__ = "0.1.0"

import os, signal, sys, threading

# A console command that is interrupted while it imports has nothing to take back: it ends without a traceback.
# `steve1.base.commands` takes over as soon as it runs. Other programs that import us keep their own handling.
if (os.path.basename((getattr(sys, 'argv', None) or [''])[0]).startswith('steve1_')
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler): signal.signal(signal.SIGINT, signal.SIG_DFL)

del os, signal, sys, threading
