"""What a build needs: toolchain folders, the image made from them, and the dependency check."""
