# find_package(riffle) -> riffle::riffle, and pkg-config riffle
include(CMakePackageConfigHelpers)

install(TARGETS riffle EXPORT riffleTargets)
install(DIRECTORY include/riffle DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT riffleTargets NAMESPACE riffle:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/riffle)
configure_package_config_file(cmake/riffleConfig.cmake.in riffleConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/riffle)
write_basic_package_version_file(riffleConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/riffleConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/riffleConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/riffle)

# Relative to where the file is, so that an installation can be moved.
file(RELATIVE_PATH riffle_prefix_from_pc /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
set(riffle_pc_requires "")
if(hwy_FOUND)
  set(riffle_pc_requires libhwy)
endif()
configure_file(cmake/riffle.pc.in riffle.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/riffle.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
