// Stands before OpenCV's own opencv.hpp, which includes every module that Debian built, installed or not.
#include <opencv2/imgproc.hpp>
