from .signals import stop_on_signal as stop_on_signal
