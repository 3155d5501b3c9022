"""What needs an extra: ``echostream[opus]``, ``echostream[audio]``. Nothing below imports it."""
