"""The command line tools: scripts in a checkout, the package sl_detectron.tools once installed."""
